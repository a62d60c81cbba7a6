"""From finished latents to rewards: pieces are scored while the next ones are computed and decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..policies.base import Policy
from ..processes import Processes
from ..rewards import BackgroundScorer, RewardError, Scores, WeightedReward
from .image_statistics import STATISTICS, image_statistics
from .shares import Shares

Stage = Callable[[str], AbstractContextManager[None]]
"""Times its block under a name."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What the images of an iteration are worth, the same in all processes but for `seconds_busy`."""

    rewards: Scores
    """Every reward's scores, [N, B, K]."""
    statistics: dict[str, Tensor]
    """Of the images: see `image_statistics`."""
    seconds_busy: float
    """What the rewards of this process took, whether or not anybody waited."""


class RolloutScorer:
    """Decodes and scores the branches of this process as a rollout finishes them, and gathers the scores of all.

        with RolloutScorer(policy, reward, prompts, metadata, shares, (B, K), processes, stage) as scorer:
            drawn = rollout(..., on_finished=scorer.finish)
            scored = scorer.collect()

    Rewards run in a thread of their own, while images are decoded and network calls finish other branches.

    Args:
        policy: decodes.
        reward: called with the images of a piece.
        prompts: of all N trajectories.
        metadata: of all N trajectories.
        shares: which trajectories are this process's, and how many the rollout carries.
        branch_shape: (B, K).
        processes: who shares the iteration.
        stage: times the stages `decode` and `reward`, the second being the wait at the end.
    """

    def __init__(
        self,
        policy: Policy,
        reward: WeightedReward,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        shares: Shares,
        branch_shape: tuple[int, int],
        processes: Processes,
        stage: Stage,
    ) -> None:
        self._policy, self._reward, self._processes, self._stage = policy, reward, processes, stage
        self._prompts, self._metadata, self._shares, self._branch_shape = prompts, metadata, shares, branch_shape
        self._scorer = BackgroundScorer(reward)
        self._images: list[Tensor] = []
        self._num_finished = 0
        self._error: RewardError | None = None

    def __enter__(self) -> RolloutScorer:
        self._scorer.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._scorer.__exit__(*failure)

    def finish(self, latents: Tensor) -> None:
        """Decodes finished branches and hands their images to the reward.

        Args:
            latents: [R, *shape] at sigma = 0, the next R rows in the order [B, N, K] of the rollout's trajectories.
        """
        first, own = self._num_finished, self._shares.own
        self._num_finished += len(latents)
        trajectories = torch.arange(first, self._num_finished) // self._branch_shape[1] % len(self._shares.carried)
        rows = (
            (trajectories < len(own)).nonzero().flatten()
        )  # `carried` lists own trajectories first; the rest are padding
        if not len(rows) or self._error is not None:  # `collect` reports a failure, in all processes together
            return
        if len(rows) < len(latents):
            latents = latents[rows.to(latents.device, non_blocking=True)]
        owners = [own[n] for n in trajectories[rows].tolist()]
        with self._stage("decode"), torch.autocast(self._policy.device.type, enabled=False):
            self._images.append(self._policy.decode(latents))
            try:
                entries = [self._metadata[n] for n in owners]
                self._scorer.submit(self._images[-1], [self._prompts[n] for n in owners], entries)
            except RewardError as failure:
                self._error = failure

    def collect(self) -> Scored:
        """Scores and statistics of all branches of all processes.

        Raises:
            RewardError: in all processes, if a reward failed in one; its sample counts that process's images in the
                order [B, n, K].
        """
        scores = None
        if self._images and self._error is None:
            try:
                with self._stage("reward"):
                    scores = self._scorer.collect()
            except RewardError as failure:
                self._error = failure
        return Scored(self._gathered(scores), self._statistics(), self._scorer.seconds_busy)

    def _statistics(self) -> dict[str, Tensor]:
        """The statistics of all images, of which this process has a share."""
        num_branches, device = self._branch_shape[1], self._policy.device
        names = [name for name in STATISTICS if num_branches > 1 or name != "image_diversity"]
        mine = torch.zeros(len(names), device=device)
        if self._images:
            found = image_statistics(torch.cat(self._images).unflatten(0, (-1, num_branches)))
            mine = len(self._shares.own) / len(self._prompts) * torch.stack([found[name] for name in names])
        return dict(zip(names, self._processes.sum(mine), strict=True))

    def _gathered(self, scores: Scores | None) -> Scores:
        """The scores of all processes, [N, B, K]; a failure travels as NaN, so that all stop together."""
        (num_branch_steps, num_branches), own = self._branch_shape, self._shares.own
        parts = {}
        for name in self._reward.rewards:
            mine = torch.zeros(len(self._prompts), num_branch_steps, num_branches, dtype=torch.float64)
            if scores is not None:
                mine[own] = scores.parts[name].view(num_branch_steps, len(own), num_branches).transpose(0, 1)
            elif own:
                mine[own] = math.nan
            parts[name] = self._processes.sum(mine)
        if self._error is not None:
            raise self._error
        for name, part in parts.items():
            if part.isnan().any():
                trajectory = int(part.isnan().flatten(1).any(1).nonzero()[0])
                raise RewardError(name, trajectory, self._prompts[trajectory], "in another process, which says why")
        return Scores(parts, self._reward.weights)
