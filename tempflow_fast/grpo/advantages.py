"""Rewards -> group-relative advantages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from ..choices import Group
from ..errors import fail, finite


def group_advantages(
    rewards: Tensor,
    group: Group = "seed",
    prompt_ids: Sequence[int] | Tensor | None = None,
    adv_eps: float = 1e-4,
    adv_clip: float = 5.0,
) -> Tensor:
    """Advantages (r - mean) / (std + adv_eps) inside each group and branch step, clipped to +-adv_clip.

    TempFlow-GRPO, arXiv 2508.04324: each branch step is normalised separately, so that a reward is credited to the step
    where its branch left the trunk. std is the population standard deviation. A group of equal rewards carries no
    signal and gets exactly 0.

    Args:
        rewards: [N, B, K], floating point. They are read on the host: pass a CPU tensor to avoid a synchronisation.
        group: "seed": the K branches of one trajectory. "prompt": the branches of all trajectories of one prompt.
        prompt_ids: [N], equal for trajectories of one prompt; needed for group "prompt" only.
        adv_eps: added to the standard deviation, in units of the reward.
        adv_clip: bound of the absolute advantage.

    Returns:
        [N, B, K], dtype and device of `rewards`; the statistics are taken in float64.

    Raises:
        ValueError: for a wrong shape, an unknown group, missing prompt_ids, or a reward that is not finite.
    """
    if not isinstance(rewards, Tensor) or rewards.dim() != 3 or not rewards.is_floating_point():
        got = f"{rewards.dtype} {list(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards)
        fail("group_advantages", "rewards", "floating point [N, B, K]", got)
    if len(bad := (~rewards.isfinite()).nonzero()):
        index = bad[0].tolist()
        fail("group_advantages", "rewards", "finite", f"{rewards[tuple(index)].item()} at {index}")
    if group not in get_args(Group):
        fail("group_advantages", "group", f"one of {get_args(Group)}", repr(group))
    if finite("group_advantages", "adv_eps", adv_eps) < 0:
        fail("group_advantages", "adv_eps", "not negative", adv_eps)
    if not adv_clip > 0:
        fail("group_advantages", "adv_clip", "positive", adv_clip)
    if group == "seed":
        return _normalise(rewards, (2,), adv_eps, adv_clip)
    advantages = torch.empty_like(rewards)
    for rows in _rows_per_prompt(prompt_ids, len(rewards)):
        advantages[rows] = _normalise(rewards[rows], (0, 2), adv_eps, adv_clip)
    return advantages


def _normalise(rewards: Tensor, dims: tuple[int, ...], adv_eps: float, adv_clip: float) -> Tensor:
    """`rewards` normalised over `dims`."""
    exact = rewards.double()
    mean, std = exact.mean(dims, keepdim=True), exact.std(dims, correction=0, keepdim=True)
    # Compared on the rewards themselves: rounding of the mean could leave tiny deviations in a group of equal rewards.
    all_equal = exact.amax(dims, keepdim=True) == exact.amin(dims, keepdim=True)
    advantages = ((exact - mean) / (std + adv_eps)).clamp(-adv_clip, adv_clip)
    return advantages.masked_fill(all_equal, 0.0).to(rewards.dtype)


def _rows_per_prompt(prompt_ids: Sequence[int] | Tensor | None, num_trajectories: int) -> list[Tensor]:
    """The rows of each prompt, in order of the ids."""
    if prompt_ids is None or len(prompt_ids) != num_trajectories:
        got = "None" if prompt_ids is None else f"[{len(prompt_ids)}]"
        fail("group_advantages", "prompt_ids", f'[{num_trajectories}] for group "prompt"', got)
    ids = torch.as_tensor(prompt_ids)
    return [(ids == prompt).nonzero().flatten() for prompt in ids.unique()]
