"""From finished latents to rewards: pieces are scored while the next ones are computed and decoded."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..batching import equal_pieces
from ..errors import NotFiniteError
from ..policies.base import Policy
from ..policies.finite import finite_rows, require_finite
from ..processes import Processes
from ..rewards import BackgroundScorer, RewardError, Scores, WeightedReward
from .branches import Branches
from .gate import checked_rows
from .image_statistics import RunningStatistics
from .shares import Shares

FAILURES = (RewardError, NotFiniteError)
"""What ends an iteration in all processes together."""

Stage = Callable[[str], AbstractContextManager[None]]
"""Times its block under a name."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What the images of an iteration are worth, the same in all processes but for `seconds_busy`."""

    rewards: Scores
    """Every reward's scores, flat [R] in the order of the list of branches."""
    checks: Scores
    """Those of the branches that were also finished by the full tail, [C]."""
    statistics: dict[str, Tensor]
    """Of the images: see `image_statistics`."""
    seconds_busy: float
    """What the rewards of this process took, whether or not anybody waited."""


class RolloutScorer:
    """Decodes and scores the branches of this process as a rollout finishes them, and gathers the scores of all.

        with RolloutScorer(policy, reward, prompts, metadata, shares, branches, checked, processes, stage) as scorer:
            drawn = rollout(..., on_finished=scorer.finish)
            scored = scorer.collect()

    Rewards run in a thread of their own, while images are decoded and network calls finish other branches.

    Args:
        policy: decodes.
        reward: called with the images of a piece.
        prompts: of all N trajectories.
        metadata: of all N trajectories.
        shares: which trajectories are this process's, and how many the rollout carries.
        branches: of all N trajectories.
        checked: int64 [C], the branches of all processes that are also finished by the full tail, in ascending order.
        processes: who shares the iteration.
        stage: times the stages `decode` and `reward`, the second being the wait for scores.
        decode_batch: the most images in one decoding call and one call of the reward; None: those of a network call.
    """

    def __init__(
        self,
        policy: Policy,
        reward: WeightedReward,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        shares: Shares,
        branches: Branches,
        checked: Tensor,
        processes: Processes,
        stage: Stage,
        decode_batch: int | None = None,
    ) -> None:
        self._policy, self._reward, self._processes, self._stage = policy, reward, processes, stage
        self._prompts, self._metadata, self._shares, self._branches = prompts, metadata, shares, branches
        self._sources = torch.cat([torch.arange(branches.num_rows), checked])  # the branch of each score
        # Of this process's rows among the R + C scores; the padding has none.
        own, carried = branches.rows_of(shares.own), branches.rows_of(shares.carried)
        padding = torch.full((len(carried) - len(own),), -1)
        mine = own[checked_rows(branches, shares.own, checked)]
        self._places = torch.cat([own, padding, branches.num_rows + torch.searchsorted(checked, mine)])
        self._scorer = BackgroundScorer(reward)
        self._scored: list[Tensor] = []  # places
        self._decode_batch = decode_batch
        self._statistics = RunningStatistics(branches, policy.device)
        self._error: RewardError | NotFiniteError | None = None

    def __enter__(self) -> RolloutScorer:
        self._scorer.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._scorer.__exit__(*failure)

    def finish(self, latents: Tensor, rows: Tensor) -> None:
        """Decodes finished branches and hands their images to the reward.

        Args:
            latents: [n, *shape] at sigma = 0.
            rows: int64 [n] on the host, their positions in the list of the rollout's branches.
        """
        mine = self._places[rows] >= 0
        if not mine.any() or self._error is not None:  # `collect` reports a failure, in all processes together
            return
        if not mine.all():
            latents = latents[mine.nonzero().flatten().to(latents.device, non_blocking=True)]
        places = self._places[rows[mine]]
        for piece in equal_pieces(len(places), self._decode_batch):
            self._score(latents[piece], places[piece])

    def _score(self, latents: Tensor, places: Tensor) -> None:
        """Decodes one piece and hands it to the reward."""
        owners = self._branches.trajectories[self._branches.pair_of_row[self._sources[places]]].tolist()
        with self._stage("reward"):
            self._scorer.make_room()
        with self._stage("decode"), torch.autocast(self._policy.device.type, enabled=False):
            images = self._policy.decode(latents)
            prompts, entries = [self._prompts[n] for n in owners], [self._metadata[n] for n in owners]
            first = sum(map(len, self._scored))
            # Computed here, read in the reward's thread: nothing waits.
            finite, numbers = finite_rows(latents, images), range(first, first + len(images))
            check = functools.partial(require_finite, self._policy, finite, prompts, numbers)
            self._scored.append(places)
            self._measure(images, places)
            try:
                self._scorer.submit(images, prompts, entries, check)
            except FAILURES as failure:
                self._error = failure

    def _measure(self, images: Tensor, places: Tensor) -> None:
        """Takes the statistics of images, but for those of a second tail."""
        first = places < self._branches.num_rows
        if first.any():
            there = None if first.all() else first.nonzero().flatten().to(images.device, non_blocking=True)
            self._statistics.add(images if there is None else images[there], places[first])

    def collect(self) -> Scored:
        """Scores and statistics of all branches of all processes.

        Raises:
            RewardError: in all processes, if a reward failed in one; its sample counts that process's images in the
                order in which they were finished.
            NotFiniteError: in the process whose latents or images are not finite; the others raise a RewardError.
        """
        scores = None
        if self._scored and self._error is None:
            try:
                with self._stage("reward"):
                    scores = self._scorer.collect()
            except FAILURES as failure:
                self._error = failure
        rewards, checks = self._gathered(scores)
        return Scored(rewards, checks, self._statistics.totals(self._processes), self._scorer.seconds_busy)

    def _gathered(self, scores: Scores | None) -> tuple[Scores, Scores]:
        """The scores of all processes, [R] and [C]; a failure travels as NaN, so that all stop together."""
        parts = {}
        for name in self._reward.rewards:
            mine = torch.zeros(len(self._sources), dtype=torch.float64)
            if scores is not None:
                mine[torch.cat(self._scored)] = scores.parts[name]
            else:
                mine[self._places[self._places >= 0]] = math.nan
            parts[name] = self._processes.sum(mine)
        if self._error is not None:
            raise self._error
        for name, part in parts.items():
            if part.isnan().any():
                pair = self._branches.pair_of_row[self._sources[int(part.isnan().nonzero()[0])]]
                trajectory = int(self._branches.trajectories[pair])
                raise RewardError(name, trajectory, self._prompts[trajectory], "in another process, which says why")
        num_rows = self._branches.num_rows
        rewards = Scores({name: part[:num_rows] for name, part in parts.items()}, self._reward.weights)
        return rewards, Scores({name: part[num_rows:] for name, part in parts.items()}, self._reward.weights)
