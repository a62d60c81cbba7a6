"""Several rewards at once: each is scored alone, and their weighted sum is a reward."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import fail, finite, require
from .base import Reward, RewardError, Scores, check_prompts, range_of, served_by
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
        of_images: Collection[str] = (),
    ) -> None:
        """Combines rewards.

        Args:
            rewards: name -> reward; scores are logged under the name.
            weights: name -> weight. A reward of weight 0 is scored and logged, but has no effect on the sum.
            timeouts: name -> seconds that a call may take; None: no limit. The default is `TIMEOUT`.
            of_images: names of the rewards that do not take videos.

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
        self._of_images = list(of_images)
        self.name = "+".join(self.rewards)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest possible sum."""
        counted = {name: weight for name, weight in self.weights.items() if weight}
        ends = [sorted(weight * end for end in range_of(self.rewards[name])) for name, weight in counted.items()]
        return sum(low for low, _ in ends), sum(high for _, high in ends)

    @property
    def served(self) -> str | None:
        """What the rewards of servers compute, by name; None: there are none."""
        known = {name: served_by(reward) for name, reward in self.rewards.items()}
        return "; ".join(f"{name}: {served}" for name, served in known.items() if served is not None) or None

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

    def check_videos(self) -> None:
        """Refuses to score videos if one of the rewards takes images alone.

        Raises:
            ValueError: naming that reward, and the setting with which it scores frames.
        """
        for name in self._of_images:
            form = json.dumps({name: {"frames": 4}})
            fail("get_reward", f"frames of {name}", f"given for videos, as in {form}: it scores images", "none")

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Scores:
        """The scores of every reward.

        Args:
            images: [R, 3, H, W], or videos [R, F, 3, H, W]; in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            RewardError: from the first reward that fails, naming it and the sample; or if the weighted sum overflows.
            ValueError: if the images have another shape, prompts or metadata another length, or a reward does not take
                videos.
        """
        fits = images.dim() in (4, 5) and images.shape[-3] == 3 and len(images) > 0
        require(fits, "score", "images", "[R, 3, H, W] or [R, F, 3, H, W] with R >= 1", list(images.shape))
        if images.dim() == 5:
            self.check_videos()
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
            images: [R, 3, H, W], or videos [R, F, 3, H, W]; in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            RewardError, ValueError: as `score`.
        """
        return self.score(images, prompts, metadata).total
