"""Whether cheap tails keep the order of rewards: some branches are finished by the full tail as well, and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..settings.iteration import GRPOConfig
from .branches import Branches, same_size
from .draw import ITERATIONS

COSINE = "gate_cosine"
"""The metric that is held against `gate_bound`."""
COSINE_STEP = f"{COSINE}_step_"
"""Name of the same metric of one branch step, before the step."""


def gated_trajectories(config: GRPOConfig, num_trajectories: int, seed: int) -> list[int]:
    """The trajectories whose branches are finished by the full tail as well, in this iteration.

    Every `gate_every` iterations it is a share `gate_share` of them, the next ones in turn; with prompt groups, of the
    prompts, so that groups stay whole.

    Args:
        config: the settings.
        num_trajectories: N.
        seed: of the iteration, as for `grpo_step`.

    Returns:
        Their numbers in ascending order; none between gates.
    """
    iteration = seed % ITERATIONS
    if config.gate_every is None or iteration % config.gate_every:
        return []
    size = config.num_seeds if config.group == "prompt" else 1
    num_units = num_trajectories // size
    number = math.ceil(config.gate_share * num_units)
    first = iteration // config.gate_every * number
    units = sorted((first + place) % num_units for place in range(number))
    return [unit * size + place for unit in units for place in range(size)]


def checked_rows(branches: Branches, trajectories: Sequence[int], checked: Tensor) -> Tensor:
    """The checked branches of one process.

    Args:
        branches: of all processes.
        trajectories: those of the process, in ascending order.
        checked: int64 [C], the checked branches of all processes, in ascending order.

    Returns:
        int64 on the host, their positions among the branches of the process.
    """
    return torch.isin(branches.rows_of(trajectories), checked).nonzero().flatten()


def gate_metrics(
    rewards: tuple[Tensor, Tensor], advantages: tuple[Tensor, Tensor], branches: Branches
) -> dict[str, Tensor]:
    """Compares what the same branches are worth after the cheap and after the full tail.

    Args:
        rewards: [C] after the cheap tail, [C] after the full one.
        advantages: the same for the advantages.
        branches: the list of these branches.

    Returns:
        gate_cosine of the advantages, over all branches and for those of each step as gate_cosine_step_<i>;
        gate_sign_agreement, the share of branches whose advantages have the same sign, among those with one in both;
        gate_rank_correlation, Spearman's inside a pair, mean over pairs; gate_reward_bias, the mean of cheap - full.
        What is not defined, since rewards are all equal, is left out.
    """
    (cheap, full), (ours, theirs) = rewards, advantages
    steps = branches.steps[branches.pair_of_row]
    found = {COSINE: cosine(ours, theirs)}
    for step in branches.steps.unique().tolist():
        found[f"{COSINE_STEP}{step}"] = cosine(ours[steps == step], theirs[steps == step])
    signs = (ours.sign() * theirs.sign())[(ours != 0) & (theirs != 0)]
    stacks = zip(same_size(cheap, branches.pair_of_row), same_size(full, branches.pair_of_row), strict=True)
    ranks = torch.cat([rank_correlation(left, right) for (_, left), (_, right) in stacks])
    found["gate_sign_agreement"] = (signs > 0).double().mean()
    found["gate_rank_correlation"] = ranks[~ranks.isnan()].mean()
    found["gate_reward_bias"] = (cheap - full).mean()
    return {name: value for name, value in found.items() if not value.isnan()}


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """The cosine of two vectors, as a scalar; NaN if one of them is 0.

    Args:
        left: [n].
        right: [n].
    """
    return left.dot(right) / (left.norm() * right.norm())


def rank_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Spearman's correlation, with ties at their mean rank.

    Args:
        left: [n, k].
        right: [n, k].

    Returns:
        [n]; NaN where all values of a row are equal.
    """
    ranks = [_ranks(each.double()) for each in (left, right)]
    centered = [each - each.mean(1, keepdim=True) for each in ranks]
    return (centered[0] * centered[1]).sum(1) / (centered[0].norm(dim=1) * centered[1].norm(dim=1))


def _ranks(values: Tensor) -> Tensor:
    mine, others = values[:, :, None], values[:, None]
    return (others < mine).sum(2) + 0.5 * (others == mine).sum(2).double()
