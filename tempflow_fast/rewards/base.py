"""What the rest of the package knows of a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Reward(Protocol):
    """Scores images; higher is better."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Rewards [R], finite floats on the CPU, of images [R, 3, H, W] in [0, 1].

        `prompts` and `metadata` have one entry per image; metadata is {} where the prompt set has none.
        """
        ...
