"""Rewards -> group-relative advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import get_args

import torch
from torch import Tensor

from ..choices import AdvantageScale, Group
from ..errors import fail, finite, require
from ..rewards import Scores
from ..settings.iteration import GRPOConfig
from .branches import Branches, same_size


def advantages_of(rewards: Scores, config: GRPOConfig, branches: Branches) -> Tensor:
    """Advantages of the branches of an iteration, whatever the number of rewards.

    With `aggregate` "gdpo" (arXiv 2601.05242) each reward is normalised in its group, the sum A with the rewards'
    weights is divided by std(A) + adv_eps over all groups at the branch step, and then clipped. The paper also
    subtracts the mean of A, which is 0 here, since every group's is.

    Args:
        rewards: flat [R] in the order of `branches`, of all processes.
        config: the settings.
        branches: the list of branches of N = P S trajectories, those of a prompt one after the other.

    Returns:
        Flat [R], float64 on the host.
    """
    prompt_ids = _prompt_ids(config, branches)
    gdpo = config.aggregate == "gdpo"

    def relative(scores: Tensor) -> Tensor:
        clip = math.inf if gdpo else config.adv_clip
        return group_advantages(scores, config.group, prompt_ids, config.adv_eps, clip, branches, config.adv_scale)

    if config.aggregate == "rewards":
        return relative(rewards.total)
    total = rewards.weighted_sum(relative)
    if gdpo:
        total = _divided(total, _spreads(total, branches), config.adv_eps)
    return total.clamp(-config.adv_clip, config.adv_clip)


def group_spreads(rewards: Tensor, config: GRPOConfig, branches: Branches) -> Tensor:
    """The standard deviation of the rewards that are compared with those of each pair.

    Args:
        rewards: flat [R] in the order of `branches`, of all processes, on the host.
        config: the settings; `group` says what a group is.
        branches: as in `advantages_of`.

    Returns:
        [G], of the population, float64.
    """
    spreads = torch.empty(branches.num_rows, dtype=torch.float64)
    for rows, groups in _groups(rewards, config.group, _prompt_ids(config, branches), branches):
        std = groups.double().std((0, -1), correction=0, keepdim=True)
        spreads[rows] = std.expand(groups.shape).reshape(rows.shape)
    return spreads[branches.first_rows]


def _prompt_ids(config: GRPOConfig, branches: Branches) -> Tensor:
    """[N]."""
    return torch.arange(branches.num_trajectories) // config.num_seeds


def group_advantages(
    rewards: Tensor,
    group: Group = "seed",
    prompt_ids: Sequence[int] | Tensor | None = None,
    adv_eps: float = 1e-4,
    adv_clip: float = 5.0,
    branches: Branches | None = None,
    scale: AdvantageScale = "group",
) -> Tensor:
    """Advantages (r - mean) / (std + adv_eps) inside each group and branch step, clipped to +-adv_clip.

    TempFlow-GRPO, arXiv 2508.04324: each branch step is normalised separately, so that a reward is credited to the step
    where its branch left the trunk. std is the population standard deviation. A group of equal rewards carries no
    signal and gets exactly 0.

    Args:
        rewards: [N, B, K], or flat [R] in the order of `branches`; floating point. They are read on the host: pass a
            CPU tensor to avoid a synchronisation.
        group: "seed": the K branches of one trajectory. "prompt": the branches of all trajectories of one prompt.
        prompt_ids: [N], equal for trajectories of one prompt; needed for group "prompt" only.
        adv_eps: added to the standard deviation, in units of the reward.
        adv_clip: bound of the absolute advantage.
        branches: the list of branches, where trajectories have different steps or numbers of branches; None: all have
            the same, in the order [N, B, K].
        scale: "group": std is that of the group. "global": of all rewards at the branch step, as `global_std` of
            Flow-GRPO. "none": r - mean, without a division.

    Returns:
        Shape, dtype and device of `rewards`; the statistics are taken in float64.

    Raises:
        ValueError: for a wrong shape, an unknown group or scale, missing prompt_ids, or rewards that are not finite or
            further apart than the statistics can hold, about 1e154.
    """
    expected, num_dims = ("[N, B, K]", 3) if branches is None else (f"[{branches.num_rows}] like branches", 1)
    if not isinstance(rewards, Tensor) or rewards.dim() != num_dims or not rewards.is_floating_point():
        got = f"{rewards.dtype} {list(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards)
        fail("group_advantages", "rewards", f"floating point {expected}", got)
    if branches is None:
        num, num_steps, count = rewards.shape
        branches = Branches.everywhere(num, dict.fromkeys(range(num_steps), count))
    require(rewards.numel() == branches.num_rows, "group_advantages", "rewards", expected, list(rewards.shape))
    if len(bad := (~rewards.isfinite()).nonzero()):
        index = bad[0].tolist()
        fail("group_advantages", "rewards", "finite", f"{rewards[tuple(index)].item()} at {index}")
    if group not in get_args(Group):
        fail("group_advantages", "group", f"one of {get_args(Group)}", repr(group))
    if scale not in get_args(AdvantageScale):
        fail("group_advantages", "scale", f"one of {get_args(AdvantageScale)}", repr(scale))
    if finite("group_advantages", "adv_eps", adv_eps) < 0:
        fail("group_advantages", "adv_eps", "not negative", adv_eps)
    if not isinstance(adv_clip, Real) or not float(adv_clip) > 0:
        fail("group_advantages", "adv_clip", "positive", adv_clip)
    flat = rewards.flatten()
    spreads = _spreads(flat, branches) if scale == "global" else None
    advantages = torch.empty_like(flat)
    for rows, groups in _groups(flat, group, prompt_ids, branches):
        distances, std = _distances(groups)
        if scale != "none":
            distances = _divided(distances, std if spreads is None else spreads[rows].view(groups.shape), adv_eps)
        advantages[rows.to(flat.device)] = distances.clamp(-adv_clip, adv_clip).to(flat.dtype).view(rows.shape)
    return advantages.view(rewards.shape)


def _groups(
    rewards: Tensor, group: Group, prompt_ids: Sequence[int] | Tensor | None, branches: Branches
) -> list[tuple[Tensor, Tensor]]:
    """Stacks of groups: their rows and rewards, [..., k] or [s, ..., k], where a group is all of the first and the last
    dimension."""
    if group == "seed":
        return [(rows, values[None]) for rows, values in same_size(rewards, branches.pair_of_row)]
    prompts = _checked_prompts(prompt_ids, branches.num_trajectories)
    if branches.shape is None:
        pair_groups = torch.stack([prompts[branches.trajectories], branches.steps]).unique(dim=1, return_inverse=True)
        return [(rows, values[None]) for rows, values in same_size(rewards, pair_groups[1][branches.pair_of_row])]
    # All steps of a prompt at once: one step at a time would round differently.
    positions, dense = branches.dense(torch.arange(len(rewards))), branches.dense(rewards)
    return [(positions[prompts == prompt], dense[prompts == prompt]) for prompt in prompts.unique()]


def _distances(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Of groups of rewards, each over the first and the last dimension: r - mean, and the standard deviation."""
    exact, dims = rewards.double(), (0, -1)
    mean, std = exact.mean(dims, keepdim=True), exact.std(dims, correction=0, keepdim=True)
    # Compared on the rewards themselves: rounding of the mean could leave tiny deviations in a group of equal rewards.
    all_equal = exact.amax(dims, keepdim=True) == exact.amin(dims, keepdim=True)
    _require_spread((all_equal | std.isfinite()).all(), exact)
    return (exact - mean).masked_fill(all_equal, 0.0), std


def _spreads(values: Tensor, branches: Branches) -> Tensor:
    """The standard deviation of all values at the branch step of each, float64 [R]."""
    exact, steps = values.double(), branches.steps[branches.pair_of_row].to(values.device)
    spreads = torch.empty_like(exact)
    for step in steps.unique():
        spreads[steps == step] = exact[steps == step].std(correction=0)
    _require_spread(spreads.isfinite().all(), exact)
    return spreads


def _divided(distances: Tensor, spreads: Tensor, adv_eps: float) -> Tensor:
    """Distances / (spreads + adv_eps); a distance of 0 stays 0, even where nothing is spread."""
    return (distances / (spreads + adv_eps)).masked_fill(distances == 0, 0.0)


def _require_spread(fits: Tensor, rewards: Tensor) -> None:
    if not fits:
        fail("group_advantages", "rewards", "of a spread that float64 can square", f"up to {rewards.abs().max():.3g}")


def _checked_prompts(prompt_ids: Sequence[int] | Tensor | None, num_trajectories: int) -> Tensor:
    """int64 [N] on the host."""
    if prompt_ids is None or len(prompt_ids) != num_trajectories:
        got = "None" if prompt_ids is None else f"[{len(prompt_ids)}]"
        fail("group_advantages", "prompt_ids", f'[{num_trajectories}] for group "prompt"', got)
    return torch.as_tensor(prompt_ids, device="cpu")
