"""Measures: images -> named scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..prompts.sets import Entry
from ..rewards import get_reward
from ..settings.run import TaskConfig

Measure = Callable[[Tensor, Sequence[str], Sequence[Entry]], dict[str, Tensor]]
"""Images [R, 3, H, W], prompts and metadata -> name -> scores [R], float64 on the host; always the same names."""


def task_measure(task: TaskConfig) -> Measure:
    """`accuracy` where the task has one, `reward`, and the parts of a sum, also those that are only watched."""
    reward = get_reward(task.reward)
    accuracy = None if task.accuracy is None else get_reward(task.accuracy)

    def measure(images: Tensor, prompts: Sequence[str], metadata: Sequence[Entry]) -> dict[str, Tensor]:
        scores = reward.score(images, prompts, metadata)
        parts = {f"reward_{name}": part for name, part in scores.parts.items()} if len(scores.parts) > 1 else {}
        right = {} if accuracy is None else {"accuracy": accuracy(images, prompts, metadata)}
        return {**right, "reward": scores.total, **parts}

    return measure


def reward_measure(spec: str) -> Measure:
    """Every reward of `spec` (see `get_reward`) under its own name; weights play no part."""
    reward = get_reward(spec)
    return lambda images, prompts, metadata: reward.score(images, prompts, metadata).parts
