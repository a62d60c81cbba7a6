"""Prompt sets: where training and evaluation prompts come from, found by name."""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

PROMPT_SETS = {"shapes": "tempflow_fast.shapes.prompts"}
"""Name -> module, imported on first use."""


class PromptSet(Protocol):
    """What a prompt module offers. A prompt is GenEval metadata: `{"tag": task, "prompt": text, ...}`."""

    def train_prompts(self) -> list[dict[str, Any]]:
        """Prompts that training may use."""
        ...

    def heldout_prompts(self) -> list[dict[str, Any]]:
        """Prompts kept for evaluation, disjoint from `train_prompts()`."""
        ...

    def draw(self, prompts: Sequence[dict[str, Any]], count: int, rng: random.Random) -> list[dict[str, Any]]:
        """`count` of `prompts`, the tasks in turn."""
        ...


def get_prompts(name: str) -> PromptSet:
    """The prompt set of a name in `PROMPT_SETS`; ValueError for any other."""
    if name not in PROMPT_SETS:
        raise ValueError(f"get_prompts: name must be one of {', '.join(sorted(PROMPT_SETS))}, got {name!r}")
    return cast(PromptSet, import_module(PROMPT_SETS[name]))
