"""Measures: images -> named scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..prompts.sets import Entry
from ..rewards import RewardError, WeightedReward, get_reward
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
        ValueError: for a reward that is unknown or cannot be loaded. The measure raises a RewardError where an accuracy
            is neither 1 nor 0.
    """
    reward = get_reward(task.reward)
    accuracy = None if task.accuracy is None else get_reward(task.accuracy)

    def measure(images: Tensor, prompts: Sequence[str], metadata: Sequence[Entry]) -> dict[str, Tensor]:
        scores = reward.score(images, prompts, metadata)
        parts = {f"reward_{name}": part for name, part in scores.parts.items()} if len(scores.parts) > 1 else {}
        right = {} if accuracy is None else {"accuracy": _verdicts(accuracy, images, prompts, metadata)}
        return {**right, "reward": scores.total, **parts}

    return measure


def _verdicts(accuracy: WeightedReward, images: Tensor, prompts: Sequence[str], metadata: Sequence[Entry]) -> Tensor:
    """Scores [R] that are 1 or 0: of others, the mean would be no share of images, and what is above 0 not right."""
    scores = accuracy(images, prompts, metadata)
    if len(wrong := ((scores != 0) & (scores != 1)).nonzero()):
        sample = int(wrong[0])
        reason = f"an accuracy must be 1 for an image that is right and 0 for any other, got {scores[sample]:g}"
        raise RewardError(accuracy.name, sample, prompts[sample], reason)
    return scores


def reward_measure(spec: str) -> Measure:
    """Returns a measure that reports every reward under its own name.

    Args:
        spec: the rewards, as in `get_reward`; their weights are ignored.

    Raises:
        ValueError: for a reward that is unknown or cannot be loaded.
    """
    reward = get_reward(spec)
    return lambda images, prompts, metadata: reward.score(images, prompts, metadata).parts
