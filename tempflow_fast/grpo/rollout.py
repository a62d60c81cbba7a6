"""Trunk, branches and tails, advanced together as one wavefront."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor

from .. import interruption, ops
from ..batching import equal_pieces, rounded_counts
from ..errors import fail, integer, require
from ..graphs.replay import MAX_ROW_COUNTS, CudaGraphs, Segment, Tensors
from ..ops import checks
from ..ops.reference import compute_dtype
from ..ops.schedule import StepTable
from ..policies.base import Condition, Policy

CONDITION = "condition."  # before the names of the condition's tensors among the inputs of a segment


@dataclass(frozen=True, eq=False)
class Rollout:
    """N trajectories, the K branches that left each of them at B branch steps, and what they cost."""

    states: Tensor
    """Trunk latents at the branch steps, [N, B, *shape]."""
    branches: Tensor
    """Latents one step later, one SDE draw each, [N, B, K, *shape]."""
    log_prob: Tensor
    """Log-density of each draw, averaged over the latent's elements, [N, B, K]."""
    latents: Tensor
    """The branches carried to sigma = 0 by the ODE, [N, B, K, *shape]."""
    condition: Condition
    """[N] rows."""
    trajectory_ids: Tensor
    """int64 [N], the trajectories' names in the noise function."""
    table: StepTable
    num_calls: int
    """Calls of `policy.velocity`."""
    num_row_evaluations: int
    """Rows in those calls; guidance evaluates each of them twice."""


@torch.no_grad()
def rollout(
    policy: Policy,
    condition: Condition,
    table: StepTable,
    noise: Tensor,
    num_branches: int,
    seed: int = 0,
    trajectory_ids: Tensor | Sequence[int] | None = None,
    max_batch: int | None = None,
    guidance_scale: float = 1.0,
    graphs: CudaGraphs | None = None,
    on_finished: Callable[[Tensor], None] | None = None,
) -> Rollout:
    """Draws the branches of N trajectories (TempFlow-GRPO, arXiv 2508.04324) in T network calls.

    There are more calls where `max_batch` cuts them.

    All live latents are in one buffer: N trunk rows, then a block [N, K] for each branch step. At every step the live
    rows are contiguous, so one call on a slice of buffer and condition advances the trunk and every branch drawn so
    far. The trunk ends at the last branch step.

    Args:
        policy: the acting policy.
        condition: [N] rows from `policy.encode`, guided if guidance_scale is above 1.
        table: sampler, sigmas and branch steps.
        noise: initial latents [N, *policy.latent_shape], float32 (or float64 with a float64 policy), usually from
            `ops.initial_noise` with the same seed and ids: it never coincides with the noise of a branch.
        num_branches: K.
        seed: key of the branch noise.
        trajectory_ids: [N] global ids; equal ids draw equal noise under one seed. None: 0..N-1.
        max_batch: most rows in one network call; None: no limit.
        guidance_scale: g in v = v_uncond + g (v_cond - v_uncond); up to 1 turns guidance off.
        graphs: captured calls of this policy to replay, see `graphs_of`; None: Python makes every call.
        on_finished: called during the last step with each group of finished branches, [R, *shape], as soon as they
            exist; the groups together are all branches in the order [B, N, K]. The calls are made under the autocast of
            the rollout, without gradients.

    Returns:
        The states, branches and finished latents; see `Rollout` for their shapes.

    Raises:
        ValueError: before the first network call, naming the argument that does not fit.
    """
    _check(policy, condition, table, noise, num_branches, max_batch)
    ids = _checked_ids(trajectory_ids, noise)
    key = checks.seed_tensor("rollout", seed, noise.device)
    wave = _Wave(
        policy=policy,
        condition=condition,
        table=table,
        noise=noise,
        num_branches=num_branches,
        seed=key.view(1),
        trajectory_ids=ids,
        max_batch=max_batch,
        guidance_scale=guidance_scale,
        graphs=graphs,
        on_finished=on_finished,
    )
    for step in range(table.num_steps):
        wave.advance(step)
    return Rollout(
        states=wave.states,
        branches=wave.branches,
        log_prob=wave.log_prob,
        latents=wave.finished(),
        condition=condition,
        trajectory_ids=ids,
        table=table,
        num_calls=wave.num_calls,
        num_row_evaluations=wave.num_row_evaluations,
    )


@dataclass(kw_only=True, eq=False)
class _Wave:
    """The buffer of live latents, [N (1 + B K), *shape], and the results recorded so far."""

    policy: Policy
    condition: Condition
    table: StepTable
    noise: InitVar[Tensor]
    num_branches: int
    seed: Tensor
    trajectory_ids: Tensor
    max_batch: int | None
    guidance_scale: float
    graphs: CudaGraphs | None
    on_finished: Callable[[Tensor], None] | None
    num_calls: int = 0
    num_row_evaluations: int = 0

    def __post_init__(self, noise: Tensor) -> None:
        self.num_trajectories, num_branch_steps = len(noise), len(self.table.branch_steps)
        self.states = noise.new_empty(self.num_trajectories, num_branch_steps, *noise.shape[1:])
        self.branches = noise.new_empty(self.num_trajectories, num_branch_steps, self.num_branches, *noise.shape[1:])
        self.log_prob = noise.new_empty(self.branches.shape[:3], dtype=compute_dtype(noise.dtype))
        self.latents = noise.new_empty(
            (1 + num_branch_steps * self.num_branches) * self.num_trajectories, *noise.shape[1:]
        )
        self.latents[: self.num_trajectories] = noise
        # Laid out once, like the buffer: every call takes a slice, and none copies the text again.
        trajectories = torch.arange(self.num_trajectories, device=noise.device)
        blocks = trajectories.repeat_interleave(self.num_branches).repeat(num_branch_steps)
        self.condition = self.condition[torch.cat([trajectories, blocks])]
        # Kept on the device: a captured graph reads this memory again, and no step waits for a copy.
        self.coefficients = self.table.coefficients(noise.device)
        self.row_counts = self._row_counts()
        sigma = self.table.sigma.to(noise.device, noise.dtype, non_blocking=True)
        self.sigma = sigma[:, None].repeat(1, max(self.row_counts.values()))
        if self.graphs:
            self.graphs.begin(self.policy, max(self.row_counts.values()))

    def _pieces(self, step: int) -> list[slice]:
        """The rows of each network call: the trunk while branches still leave it, and every branch drawn so far."""
        start = 0 if step <= self.table.branch_steps[-1] else self.num_trajectories
        end = self.num_trajectories * (
            1 + self.num_branches * sum(earlier < step for earlier in self.table.branch_steps)
        )
        pieces = equal_pieces(end - start, self.max_batch)
        return [slice(start + piece.start, start + piece.stop) for piece in pieces]

    def _row_counts(self) -> dict[int, int]:
        """Rows of a piece -> rows of its call. They differ only where graphs of more shapes would cost too much."""
        counts = {piece.stop - piece.start for step in range(self.table.num_steps) for piece in self._pieces(step)}
        return rounded_counts(counts, MAX_ROW_COUNTS) if self.graphs else {count: count for count in counts}

    def advance(self, step: int) -> None:
        """Moves all active rows one step; at a branch step, draws K branches of every trunk row and appends them."""
        column = self.table.branch_steps.index(step) if step in self.table.branch_steps else None
        if column is not None:
            self.states[:, column] = self.latents[: self.num_trajectories]
        for rows in self._pieces(step):
            trunk = (
                slice(rows.start, max(rows.start, min(rows.stop, self.num_trajectories)))
                if column is not None
                else slice(0, 0)
            )
            moved, *drawn = self._call(step, rows, trunk)
            self.latents[rows] = moved[: rows.stop - rows.start]
            if drawn:
                self.branches[trunk, column], self.log_prob[trunk, column] = drawn
            if step == self.table.num_steps - 1:
                self._finish(rows)
        if column is not None:
            first = self.num_trajectories * (1 + column * self.num_branches)
            appended = self.latents[first : first + self.num_trajectories * self.num_branches]
            appended.unflatten(0, (self.num_trajectories, -1)).copy_(self.branches[:, column])
            if step == self.table.num_steps - 1:
                self._finish(slice(first, first + len(appended)))

    def _finish(self, rows: slice) -> None:
        """Hands over the branches among finished rows of the buffer."""
        first = max(rows.start, self.num_trajectories)
        if self.on_finished is not None and first < rows.stop:
            self.on_finished(self.latents[first : rows.stop])

    def _call(self, step: int, rows: slice, trunk: slice) -> tuple[Tensor, ...]:
        """The outputs of `_segment` for the given rows of the buffer, whose trunk rows, if any, draw branches."""
        num_rows, num_trunk = self.row_counts[rows.stop - rows.start], trunk.stop - trunk.start
        missing = num_rows - (rows.stop - rows.start)
        interruption.before_call()
        # A step without branches depends only on its row of coefficients, so one graph serves all such steps. Branch
        # noise depends on the step number, so each branch step has a graph of its own.
        shared = self.graphs is not None and not num_trunk
        branching = {"seed": self.seed, "trajectory_ids": self.trajectory_ids[trunk]} if num_trunk else {}
        inputs = {
            "latents": _padded(self.latents[rows], missing),
            "sigma": self.sigma[step, :num_rows],
            "coefficients": self.coefficients[step : step + 1] if shared else self.coefficients,
            **branching,
            **{CONDITION + name: _padded(part, missing) for name, part in self.condition[rows].tensors.items()},
        }
        number = 0 if shared else step
        segment = _segment(self.policy, self.table, number, num_trunk, self.num_branches, self.guidance_scale)
        self.num_calls += 1
        self.num_row_evaluations += num_rows
        if self.graphs is None:
            return segment(inputs)
        return self.graphs.run((number, num_trunk, self.num_branches, self.guidance_scale), segment, inputs)

    def finished(self) -> Tensor:
        """All branches, [N, B, K, *shape]."""
        shape = (len(self.table.branch_steps), self.num_trajectories, self.num_branches)
        return self.latents[self.num_trajectories :].unflatten(0, shape).movedim(1, 0)


def _segment(
    policy: Policy, table: StepTable, step: int, num_trunk: int, num_branches: int, guidance_scale: float
) -> Segment:
    """One network call and the moves that follow it, as a function of device tensors alone.

    Inputs: latents [R, *shape], sigma [R], coefficients (the table's, or one row of it with step 0), the condition's
    tensors [R, ...] and, if branches leave the first `num_trunk` rows, seed [1] and trajectory_ids [num_trunk].
    Outputs: latents one step later and, if branches leave, branches [num_trunk, K, *shape] and log_prob [num_trunk, K].
    """

    def move(inputs: Tensors) -> tuple[Tensor, ...]:
        latents, live_table = inputs["latents"], table.reading(inputs["coefficients"])
        named = {name.removeprefix(CONDITION): part for name, part in inputs.items() if name.startswith(CONDITION)}
        velocity, uncond = policy.velocity(latents, inputs["sigma"], Condition(named), guidance_scale)

        def guidance(rows: slice) -> dict[str, Any]:
            return {} if uncond is None else {"velocity_uncond": uncond[rows], "guidance_scale": guidance_scale}

        def euler(rows: slice) -> Tensor:
            return ops.euler_step(latents[rows], velocity[rows], live_table, step, **guidance(rows))

        if not num_trunk:
            return (euler(slice(0, len(latents))),)
        trunk = slice(0, num_trunk)
        moved, drawn, log_prob = ops.branch_step(
            latents[trunk],
            velocity[trunk],
            live_table,
            step,
            num_branches,
            inputs["seed"],
            inputs["trajectory_ids"],
            **guidance(trunk),
        )
        if num_trunk < len(latents):
            moved = torch.cat([moved, euler(slice(num_trunk, len(latents)))])
        return moved, drawn, log_prob

    return move


def _padded(tensor: Tensor, missing: int) -> Tensor:
    """`tensor` with its last row `missing` times more."""
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor


def _checked_ids(trajectory_ids: Tensor | Sequence[int] | None, noise: Tensor) -> Tensor:
    """int64 [N] on the device of `noise`."""
    if trajectory_ids is None:
        return torch.arange(len(noise), device=noise.device)
    return checks.ids("rollout", trajectory_ids, len(noise), noise.device)


def _check(
    policy: Policy, condition: Condition, table: StepTable, noise: Tensor, num_branches: int, max_batch: int | None
) -> None:
    if noise.dim() == 0 or not len(noise) or noise.shape[1:] != tuple(policy.latent_shape):
        fail("rollout", "noise", f"[N, {', '.join(map(str, policy.latent_shape))}] with N >= 1", list(noise.shape))
    require(len(condition) == len(noise), "rollout", "condition", f"of {len(noise)} rows like noise", len(condition))
    require(bool(table.branch_steps), "rollout", "table", "one with a branch step", "none")
    require(integer("rollout", "num_branches", num_branches) >= 1, "rollout", "num_branches", ">= 1", num_branches)
    if max_batch is not None and integer("rollout", "max_batch", max_batch) < 1:
        fail("rollout", "max_batch", ">= 1 or None", max_batch)
