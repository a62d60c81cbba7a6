"""Several rewards at once: each scored by itself, together a weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .base import Reward, Scores, range_of
from .checked import checked_scores

TIMEOUT = 1200.0
"""Seconds that a reward may take for a call where nothing else is said; less than processes wait for one another."""


class WeightedReward:
    """A weighted sum of rewards, which is a reward itself."""

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        timeouts: Mapping[str, float | None] | None = None,
    ) -> None:
        """`rewards` and `weights` by the names under which their scores are logged.

        A reward of weight 0 is watched: scored and logged, and of no consequence. `timeouts` are the seconds that a
        call may take, None for as long as it likes; without an entry, `TIMEOUT`.

        Raises:
            ValueError: for a weight that is infinite or NaN, where none differs from 0, or for a time-out that is not
                positive.
        """
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"WeightedReward: weight of {name} must be finite, got {weight}")
        if not any(weights[name] for name in rewards):
            raise ValueError(f"WeightedReward: one of the weights must differ from 0, got {dict(weights)}")
        self.rewards, self.weights = dict(rewards), {name: float(weights[name]) for name in rewards}
        self.timeouts = {name: (timeouts or {}).get(name, TIMEOUT) for name in rewards}
        for name, timeout in self.timeouts.items():
            if timeout is not None and not timeout > 0:
                raise ValueError(f"WeightedReward: timeout of {name} must be positive or None, got {timeout}")
        self.name = "+".join(self.rewards)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest sum."""
        counted = {name: weight for name, weight in self.weights.items() if weight}
        ends = [sorted(weight * end for end in range_of(self.rewards[name])) for name, weight in counted.items()]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Scores:
        """Every reward's scores of images [R, 3, H, W] with their R prompts and metadata.

        Raises:
            RewardError: from the first reward that fails, naming it and the sample.
            ValueError: for images of another shape, or prompts or metadata of another length.
        """
        if images.dim() != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"score: images must be [R, 3, H, W] with R >= 1, got {list(images.shape)}")
        for argument, values in (("prompts", prompts), ("metadata", metadata)):
            if len(values) != len(images):
                raise ValueError(f"score: {argument} must have {len(images)} entries like images, got {len(values)}")
        parts = {
            name: checked_scores(name, reward, images, prompts, metadata, self.timeouts[name])
            for name, reward in self.rewards.items()
        }
        return Scores(parts, self.weights)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """The weighted sum, float64 [R] on the host; errors as `score`."""
        return self.score(images, prompts, metadata).total
