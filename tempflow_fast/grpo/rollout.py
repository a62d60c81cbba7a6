"""Trunk, branches and tails, advanced together as one wavefront."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import fail, finite, instance, integer, integers, require
from ..graphs.replay import CudaGraphs
from ..ops import checks
from ..ops.schedule import StepTable
from ..policies.base import Condition, Policy, check_policy
from .branches import Branches
from .tails import Tails, full_tails
from .wave import Context, OnFinished, Wave
from .wavefront import NO_CALLS, NumCalls


@dataclass(frozen=True, eq=False)
class Rollout:
    """N trajectories, the branches that left them, and what they cost.

    With the same branch steps and the same K for all trajectories, `states`, `branches`, `log_prob` and `latents` view
    the flat tensors as [N, B, ...] and [N, B, K, ...].
    """

    branch_list: Branches
    """G pairs (trajectory, branch step) with R branches in all, and the order of the flat tensors."""
    flat_states: Tensor
    """Trunk latents at the branch step of each pair, [G, *shape]."""
    flat_branches: Tensor
    """Latents one step later, one SDE draw each, [R, *shape]."""
    flat_log_prob: Tensor
    """Log-density of each draw, averaged over the latent's elements, [R]."""
    flat_latents: Tensor
    """The branches carried to sigma = 0 by the ODE, [R, *shape]."""
    condition: Condition
    """[N] rows."""
    trajectory_ids: Tensor
    """int64 [N], the trajectories' names in the noise function."""
    table: StepTable
    checked: Tensor
    """int64 [C], the branches that were also finished by the full tail."""
    checked_latents: Tensor
    """What the full tail makes of them, [C, *shape]."""
    num_calls: int
    """Calls of `policy.velocity`."""
    num_row_evaluations: int
    """Rows in those calls; guidance evaluates each of them twice."""

    @property
    def states(self) -> Tensor:
        """Trunk latents at the branch steps, [N, B, *shape]."""
        return self.branch_list.dense_pairs(self.flat_states)

    @property
    def branches(self) -> Tensor:
        """Latents one step later, [N, B, K, *shape]."""
        return self.branch_list.dense(self.flat_branches)

    @property
    def log_prob(self) -> Tensor:
        """Log-density of each draw, [N, B, K]."""
        return self.branch_list.dense(self.flat_log_prob)

    @property
    def latents(self) -> Tensor:
        """The finished branches, [N, B, K, *shape]."""
        return self.branch_list.dense(self.flat_latents)


@torch.no_grad()
def rollout(
    policy: Policy,
    condition: Condition,
    table: StepTable,
    noise: Tensor,
    num_branches: int | Sequence[int] | Branches,
    seed: int = 0,
    trajectory_ids: Tensor | Sequence[int] | None = None,
    max_batch: int | None = None,
    guidance_scale: float = 1.0,
    graphs: CudaGraphs | None = None,
    on_finished: OnFinished | None = None,
    tails: Tails | None = None,
    tail_context: Context = nullcontext,
    checked: Tensor | None = None,
    least_calls: Sequence[NumCalls] | None = None,
) -> Rollout:
    """Draws the branches of N trajectories (TempFlow-GRPO, arXiv 2508.04324) in T network calls.

    There are more calls where `max_batch` cuts them. A trunk ends at the last branch step of its trajectory. The noise
    of a branch depends on (seed, trajectory id, step, branch) alone, not on which others are drawn.

    Args:
        policy: the acting policy.
        condition: [N] rows from `policy.encode`, guided if guidance_scale is above 1.
        table: sampler, sigmas and branch steps.
        noise: initial latents [N, *policy.latent_shape], float32 (or float64 with a float64 policy), usually from
            `ops.initial_noise` with the same seed and ids: it never coincides with the noise of a branch.
        num_branches: K; or one K per branch step of `table`, where 0 means none; or any list of (trajectory, step, K).
        seed: key of the branch noise.
        trajectory_ids: [N] global ids; equal ids draw equal noise under one seed. None: 0..N-1.
        max_batch: most rows in one network call; None: no limit.
        guidance_scale: g in v = v_uncond + g (v_cond - v_uncond); up to 1 turns guidance off.
        graphs: captured calls of this policy to replay, see `graphs_of`; None: Python makes every call.
        on_finished: called with each group of finished branches as soon as they exist, and with their positions in the
            list. The groups together are all branches; those of one pair follow one another. The calls are made under
            the autocast of the rollout, without gradients. Branches that are finished by the full tail as well come
            again, with the positions R, R + 1, ... in the order of `checked`.
        tails: how branches are finished, made for `table`; None: by the rest of the schedule.
        tail_context: network calls of tails with a precision of their own are made inside what it returns.
        checked: int64 [C] on the host, positions of branches to finish by the rest of the schedule as well; None: none.
        least_calls: [T], the number of network calls that each step makes at least, so that processes which share a
            network make the same; None: no more than are needed.

    Returns:
        The states, branches and finished latents; see `Rollout` for their shapes.

    Raises:
        ValueError: before the first network call, naming the argument that does not fit.
    """
    _check(policy, condition, table, noise, max_batch, guidance_scale)
    branches = _listed(num_branches, table, len(noise))
    tails = full_tails(table) if tails is None else tails
    require(tails.main is table, "rollout", "tails", "made for table", "others")
    missing = sorted(set(branches.steps.tolist()) - set(tails.lengths))
    require(not missing, "rollout", "tails", "of every branch step", f"none of {missing}")
    ids = _checked_ids(trajectory_ids, noise)
    key = checks.seed_tensor("rollout", seed, noise.device)
    wave = Wave(
        policy=policy,
        condition=condition,
        table=table,
        noise=noise,
        branches=branches,
        seed=key.view(1),
        trajectory_ids=ids,
        tails=tails,
        tail_context=tail_context,
        max_batch=max_batch,
        checked=torch.zeros(0, dtype=torch.int64) if checked is None else checked,
        guidance_scale=guidance_scale,
        graphs=graphs,
        on_finished=on_finished,
        least_calls=[NO_CALLS] * table.num_steps if least_calls is None else least_calls,
    )
    for step in range(table.num_steps):
        wave.advance(step)
    return Rollout(
        branch_list=branches,
        flat_states=wave.states,
        flat_branches=wave.drawn,
        flat_log_prob=wave.log_prob,
        flat_latents=wave.latents[len(noise) :][: branches.num_rows],
        checked=wave.checked,
        checked_latents=wave.latents[len(noise) + branches.num_rows :],
        condition=condition,
        trajectory_ids=ids,
        table=table,
        num_calls=wave.num_calls,
        num_row_evaluations=wave.num_row_evaluations,
    )


def _listed(num_branches: int | Sequence[int] | Branches, table: StepTable, num_trajectories: int) -> Branches:
    """The list of branches, after a check."""
    steps = table.branch_steps
    if isinstance(num_branches, Branches):
        require(
            num_branches.num_trajectories == num_trajectories,
            "rollout",
            "num_branches",
            f"a list of {num_trajectories} trajectories like noise",
            num_branches.num_trajectories,
        )
        outside = sorted(set(num_branches.steps.tolist()) - set(steps))
        require(not outside, "rollout", "num_branches", f"at the branch steps {list(steps)} of table", outside)
        return num_branches
    if isinstance(num_branches, Sequence):
        counts = integers("rollout", "num_branches", num_branches)
        fits = len(counts) == len(steps) and min(counts) >= 0 and any(counts)
        require(fits, "rollout", "num_branches", f"{len(steps)} counts, one per branch step, not all 0", counts)
    else:
        count = integer("rollout", "num_branches", num_branches)
        require(count >= 1, "rollout", "num_branches", ">= 1", count)
        counts = [count] * len(steps)
    return Branches.everywhere(num_trajectories, dict(zip(steps, counts, strict=True)))


def _checked_ids(trajectory_ids: Tensor | Sequence[int] | None, noise: Tensor) -> Tensor:
    """int64 [N] on the device of `noise`."""
    if trajectory_ids is None:
        return torch.arange(len(noise), device=noise.device)
    return checks.ids("rollout", trajectory_ids, len(noise), noise.device)


def _check(
    policy: Policy,
    condition: Condition,
    table: StepTable,
    noise: Tensor,
    max_batch: int | None,
    guidance_scale: float,
) -> None:
    """Refuses arguments of another kind, or that do not fit one another."""
    check_policy("rollout", policy, "velocity", "latent_shape", "device")
    instance("rollout", "condition", condition, Condition, "a Condition, as policy.encode returns")
    instance("rollout", "table", table, StepTable, "a StepTable, as step_table returns")
    instance("rollout", "noise", noise, Tensor, "a tensor")
    finite("rollout", "guidance_scale", guidance_scale)
    require(noise.is_floating_point(), "rollout", "noise", "of floating-point numbers", noise.dtype)
    if noise.dim() == 0 or not len(noise) or noise.shape[1:] != tuple(policy.latent_shape):
        fail("rollout", "noise", f"[N, {', '.join(map(str, policy.latent_shape))}] with N >= 1", list(noise.shape))
    require(len(condition) == len(noise), "rollout", "condition", f"of {len(noise)} rows like noise", len(condition))
    require(bool(table.branch_steps), "rollout", "table", "one with a branch step", "none")
    if max_batch is not None and integer("rollout", "max_batch", max_batch) < 1:
        fail("rollout", "max_batch", ">= 1 or None", max_batch)
