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

        with RolloutScorer(policy, reward, prompts, metadata, own, (B, K), processes, stage) as scorer:
            drawn = rollout(..., on_finished=scorer.finish)
            scored = scorer.collect()

    Rewards run in a thread of their own, beside decoding and beside the network calls that finish other branches.

    Args:
        policy: decodes.
        reward: called with the images of a piece, in the order of their places.
        prompts, metadata: of all N trajectories.
        own: ids of this process's trajectories; the rollout may carry others after them, which are not looked at.
        branches: (B, K).
        processes: who shares the iteration.
        stage: times the stages `decode` and `reward`, the second being the wait at the end.
    """

    def __init__(
        self,
        policy: Policy,
        reward: WeightedReward,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        own: Sequence[int],
        branches: tuple[int, int],
        processes: Processes,
        stage: Stage,
    ) -> None:
        self._policy, self._reward, self._processes, self._stage = policy, reward, processes, stage
        self._prompts, self._metadata, self._own, self._branches = prompts, metadata, own, branches
        self._scorer = BackgroundScorer(reward)
        self._images: list[Tensor] = []
        self._places: list[Tensor] = []
        self._error: RewardError | None = None

    def __enter__(self) -> RolloutScorer:
        self._scorer.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._scorer.__exit__(*failure)

    def finish(self, latents: Tensor, places: Tensor) -> None:
        """Decodes finished branches [R, *shape] and hands them on.

        Args:
            latents: sigma = 0.
            places: host int64 [R], rising, in the flattened [n, B, K] of the trajectories that the rollout carries.
        """
        repeats = math.prod(self._branches)
        num_own = int((places < len(self._own) * repeats).sum())
        if not num_own or self._error is not None:  # the others must hear of a failure first, after the rollout
            return
        places = places[:num_own]
        owners = [self._own[n] for n in (places // repeats).tolist()]
        self._places.append(places)
        with self._stage("decode"), torch.autocast(self._policy.device.type, enabled=False):
            self._images.append(self._policy.decode(latents[:num_own]))
            try:
                entries = [self._metadata[n] for n in owners]
                self._scorer.submit(self._images[-1], [self._prompts[n] for n in owners], entries)
            except RewardError as failure:
                self._error = failure

    def collect(self) -> Scored:
        """Scores and statistics of all branches of all processes.

        Raises:
            RewardError: in all processes, if a reward failed in one; its sample is a place among its process's images.
        """
        scores, order = None, torch.cat(self._places).argsort() if self._places else torch.empty(0, dtype=torch.int64)
        if self._images and self._error is None:
            try:
                with self._stage("reward"):
                    scores = self._scorer.collect().reordered(order)
            except RewardError as failure:
                self._error = failure
        shape = (len(self._prompts), *self._branches)
        rewards = _gathered(scores, self._named(), self._reward, self._own, shape, self._prompts, self._processes)
        statistics = self._statistics(order)
        return Scored(rewards, statistics, self._scorer.seconds_busy)

    def _named(self) -> RewardError | None:
        """The failure, with the place of its sample instead of its turn."""
        error = self._error
        if error is None:
            return None
        named = RewardError(error.name, int(torch.cat(self._places)[error.sample]), error.prompt, error.reason)
        named.__cause__ = error
        return named

    def _statistics(self, order: Tensor) -> dict[str, Tensor]:
        """The statistics of all images, of which this process has a share."""
        num_branches, device = self._branches[1], self._policy.device
        names = [name for name in STATISTICS if num_branches > 1 or name != "image_diversity"]
        mine = torch.zeros(len(names), device=device)
        if self._images:
            images = torch.cat(self._images)[order.to(device, non_blocking=True)]
            found = image_statistics(images.unflatten(0, (-1, num_branches)))
            mine = len(self._own) / len(self._prompts) * torch.stack([found[name] for name in names])
        return dict(zip(names, self._processes.sum(mine), strict=True))


def _gathered(
    scores: Scores | None,
    error: RewardError | None,
    reward: WeightedReward,
    own: Sequence[int],
    shape: tuple[int, int, int],
    prompts: Sequence[str],
    processes: Processes,
) -> Scores:
    """The scores of all processes, [N, B, K]; a failure travels as NaN, so that all stop together."""
    parts = {}
    for name in reward.rewards:
        mine = torch.zeros(shape, dtype=torch.float64)
        if len(own):
            mine[own] = math.nan if scores is None else scores.parts[name].view(len(own), *shape[1:])
        parts[name] = processes.sum(mine)
    if error is not None:
        raise error
    for name, part in parts.items():
        if part.isnan().any():
            trajectory = int(part.isnan().flatten(1).any(1).nonzero()[0])
            raise RewardError(name, trajectory, prompts[trajectory], "in another process, which says why")
    return Scores(parts, reward.weights)
