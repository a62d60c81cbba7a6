"""Stochastic trajectories without branches: the noise of every branch step stays in the trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import interruption, ops
from ..batching import equal_pieces
from ..ops import checks
from ..ops.reference import compute_dtype
from ..ops.schedule import StepTable
from ..policies.base import Condition, Policy
from ..policies.evaluated import evaluated
from .branches import Branches
from .rollout import OnFinished, Rollout


@torch.no_grad()
def chain_rollout(
    policy: Policy,
    condition: Condition,
    table: StepTable,
    noise: Tensor,
    branches: Branches,
    seed: int,
    trajectory_ids: Sequence[int],
    max_batch: int | None = None,
    guidance_scale: float = 1.0,
    on_finished: OnFinished | None = None,
) -> Rollout:
    """Draws N trajectories that take the noisy step themselves, as Flow-GRPO does (arXiv 2505.05470).

    At its branch steps a trajectory moves on with the noise; at all others by the ODE. It has one finished latent, so
    its reward belongs to all of its steps together.

    Args:
        policy: the acting policy.
        condition: [N] rows from `policy.encode`, guided if guidance_scale is above 1.
        table: sampler, sigmas and branch steps.
        noise: initial latents [N, *policy.latent_shape].
        branches: the pairs (trajectory, step) that are noisy, with K = 1 each.
        seed: key of the noise.
        trajectory_ids: [N] global ids.
        max_batch: most rows in one network call; None: no limit.
        guidance_scale: g in v = v_uncond + g (v_cond - v_uncond); up to 1 turns guidance off.
        on_finished: called with finished latents and, for each, its trajectory.

    Returns:
        One branch per pair: the latents after its step. Its finished latents are those of its trajectory.
    """
    ids = torch.as_tensor(trajectory_ids, dtype=torch.int64).to(noise.device, non_blocking=True)
    key = checks.seed_tensor("rollout", seed, noise.device).view(1)
    latents = noise.clone()
    states, drawn = (noise.new_empty(branches.num_pairs, *noise.shape[1:]) for _ in range(2))
    log_prob = noise.new_empty(branches.num_pairs, dtype=compute_dtype(noise.dtype))
    pieces = equal_pieces(len(noise), max_batch)
    for step in range(table.num_steps):
        pairs = branches.pairs_at(step)
        for rows in pieces:
            interruption.before_call()
            x = latents[rows]
            sigma = table.sigma[step].to(x.device, x.dtype, non_blocking=True).expand(len(x))
            velocity, uncond = evaluated(policy, x, sigma, condition[rows], guidance_scale)
            guidance: dict[str, Any] = {}
            if uncond is not None:
                guidance = {"velocity_uncond": uncond, "guidance_scale": guidance_scale}
            noisy = pairs[rows] >= 0
            moved = ops.euler_step(x, velocity, table, step, **guidance)
            if noisy.any():
                _, after, density = ops.branch_step(x, velocity, table, step, 1, key, ids[rows], **guidance)
                place, here = pairs[rows][noisy].to(x.device), noisy.to(x.device)
                states[place], drawn[place], log_prob[place] = x[here], after[here, 0], density[here, 0]
                moved = torch.where(here.view(-1, *[1] * (x.dim() - 1)), after[:, 0], moved)
            latents[rows] = moved
            if step == table.num_steps - 1 and on_finished is not None:
                on_finished(moved, torch.arange(len(noise))[rows])
    none = torch.zeros(0, dtype=torch.int64)
    return Rollout(
        branch_list=branches,
        flat_states=states,
        flat_branches=drawn,
        flat_log_prob=log_prob,
        flat_latents=latents[branches.trajectories.to(noise.device)],
        condition=condition,
        trajectory_ids=ids,
        table=table,
        checked=none,
        checked_latents=latents[:0],
        num_calls=table.num_steps * len(pieces),
        num_row_evaluations=table.num_steps * len(noise),
    )
