"""Measures: images -> named scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..prompts.sets import Entry
from ..rewards import get_reward
from ..settings.run import TaskConfig

Measure = Callable[[Tensor, Sequence[str], Sequence[Entry]], dict[str, Tensor]]
"""Images [R, 3, H, W] or videos [R, F, 3, H, W], prompts and metadata -> name -> scores [R], float64 on the
host; always the same names."""


def task_measure(task: TaskConfig) -> Measure:
    """Returns the measure of a training run.

    Args:
        task: names the reward and the accuracy.

    Returns:
        A measure with the names `accuracy` if the task has one, `reward`, and `reward_<name>` for each part of a sum,
        including parts of weight 0.

    Raises:
        ValueError: for a reward that is unknown or cannot be loaded.
    """
    reward = get_reward(task.reward)
    accuracy = None if task.accuracy is None else get_reward(task.accuracy)

    def measure(images: Tensor, prompts: Sequence[str], metadata: Sequence[Entry]) -> dict[str, Tensor]:
        scores = reward.score(images, prompts, metadata)
        parts = {f"reward_{name}": part for name, part in scores.parts.items()} if len(scores.parts) > 1 else {}
        right = {} if accuracy is None else {"accuracy": accuracy(images, prompts, metadata)}
        return {**right, "reward": scores.total, **parts}

    return measure


def reward_measure(spec: str) -> Measure:
    """Returns a measure that reports every reward under its own name.

    Args:
        spec: the rewards, as in `get_reward`; their weights are ignored.

    Raises:
        ValueError: for a reward that is unknown or cannot be loaded.
    """
    reward = get_reward(spec)
    return lambda images, prompts, metadata: reward.score(images, prompts, metadata).parts
