"""From finished latents to rewards: pieces are scored while the next ones are decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batching import equal_pieces
from .image_statistics import STATISTICS, image_statistics
from .policies.base import Policy
from .processes import Processes
from .rewards import BackgroundScorer, RewardError, Scores, WeightedReward

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


def score_rollout(
    policy: Policy,
    latents: Tensor,
    reward: WeightedReward,
    prompts: Sequence[str],
    metadata: Sequence[dict[str, Any]],
    own: Sequence[int],
    processes: Processes,
    max_batch: int | None,
    stage: Stage,
) -> Scored:
    """Decodes and scores the branches of this process's trajectories, and gathers all.

    Args:
        policy: decodes.
        latents: [n, B, K, *shape], of the trajectories `own`; n may be 0.
        reward: called with pieces of at most `max_batch` images, in that order, in a thread of its own.
        prompts, metadata: of all N trajectories.
        own: ids of this process's trajectories.
        processes: who shares the iteration.
        max_batch: most images to decode and score at once; None: all.
        stage: times the stages `decode` and `reward`, the second being the wait after the first.

    Raises:
        RewardError: in all processes, if a reward failed in one.
    """
    branches = tuple(latents.shape[1:3])
    repeats = math.prod(branches)
    texts = [prompts[n] for n in own for _ in range(repeats)]
    entries = [metadata[n] for n in own for _ in range(repeats)]
    flat, images, scores, error = latents.flatten(0, 2), [], None, None
    with BackgroundScorer(reward) as scorer:
        try:
            with stage("decode"):
                for rows in equal_pieces(len(flat), max_batch):
                    images.append(policy.decode(flat[rows]))
                    scorer.submit(images[-1], texts[rows], entries[rows])
            with stage("reward"):
                scores = scorer.collect() if images else None
        except RewardError as failure:
            error = failure  # the others must hear of it first
    rewards = _gathered(scores, error, reward, own, (len(prompts), *branches), prompts, processes)
    statistics = _statistics(images, branches[1], len(own) / len(prompts), processes, latents.device)
    return Scored(rewards, statistics, scorer.seconds_busy)


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


def _statistics(
    images: Sequence[Tensor], num_branches: int, share: float, processes: Processes, device: torch.device
) -> dict[str, Tensor]:
    """The statistics of all images, of which this process has a `share`."""
    names = [name for name in STATISTICS if num_branches > 1 or name != "image_diversity"]
    mine = torch.zeros(len(names), device=device)
    if images:
        found = image_statistics(torch.cat(list(images)).unflatten(0, (-1, num_branches)))
        mine = share * torch.stack([found[name] for name in names])
    return dict(zip(names, processes.sum(mine), strict=True))
