"""Several rewards at once: each is scored alone, and their weighted sum is a reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import finite, require
from .base import Reward, RewardError, Scores, check_prompts, range_of
from .checked import checked_scores

TIMEOUT = 1200.0
"""Seconds that a call may take by default; less than processes wait for each other."""


class WeightedReward:
    """A weighted sum of rewards, which is a reward itself."""

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        timeouts: Mapping[str, float | None] | None = None,
    ) -> None:
        """Combines rewards.

        Args:
            rewards: name -> reward; scores are logged under the name.
            weights: name -> weight. A reward of weight 0 is scored and logged, but has no effect on the sum.
            timeouts: name -> seconds that a call may take; None: no limit. The default is `TIMEOUT`.

        Raises:
            ValueError: if a weight is infinite or NaN, all of them are 0, or a time-out is not positive.
        """
        for name, weight in weights.items():
            finite("WeightedReward", f"weight of {name}", weight)
        counts = any(weights[name] for name in rewards)
        require(counts, "WeightedReward", "weights", "different from 0 for at least one reward", dict(weights))
        self.rewards, self.weights = dict(rewards), {name: float(weights[name]) for name in rewards}
        self.timeouts = {name: (timeouts or {}).get(name, TIMEOUT) for name in rewards}
        for name, timeout in self.timeouts.items():
            fits = timeout is None or timeout > 0
            require(fits, "WeightedReward", f"timeout of {name}", "positive or None", timeout)
        self.name = "+".join(self.rewards)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest possible sum."""
        counted = {name: weight for name, weight in self.weights.items() if weight}
        ends = [sorted(weight * end for end in range_of(self.rewards[name])) for name, weight in counted.items()]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Asks every reward whether it can score these prompts; one of weight 0 would end the run as well.

        Args:
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            ValueError: from the first reward that cannot.
        """
        for reward in self.rewards.values():
            check_prompts(reward, prompts, metadata)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Scores:
        """The scores of every reward.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            RewardError: from the first reward that fails, naming it and the sample; or if the weighted sum overflows.
            ValueError: if the images have another shape, or prompts or metadata another length.
        """
        fits = images.dim() == 4 and images.shape[1] == 3 and len(images) > 0
        require(fits, "score", "images", "[R, 3, H, W] with R >= 1", list(images.shape))
        for argument, values in (("prompts", prompts), ("metadata", metadata)):
            require(len(values) == len(images), "score", argument, f"{len(images)} entries, as images", len(values))
        parts = {
            name: checked_scores(name, reward, images, prompts, metadata, self.timeouts[name])
            for name, reward in self.rewards.items()
        }
        scores = Scores(parts, self.weights)
        if len(overflows := (~scores.total.isfinite()).nonzero()):
            sample = int(overflows[0])
            each = ", ".join(f"{self.weights[name]:g} * {part[sample]:g} ({name})" for name, part in parts.items())
            raise RewardError(self.name, sample, prompts[sample], f"the sum overflows: {each}")
        return scores

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """The weighted sum, float64 [R] on the host.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            RewardError, ValueError: as `score`.
        """
        return self.score(images, prompts, metadata).total
