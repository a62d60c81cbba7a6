"""A rollout as it runs: the buffer of live latents, and the network calls and moves that the wavefront has planned."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor

from .. import interruption, ops
from ..batching import bucket, rounded_counts
from ..graphs.replay import MAX_ROW_COUNTS, CudaGraphs, Segment, Tensors
from ..ops.reference import compute_dtype
from ..ops.schedule import StepTable
from ..policies.base import Condition, Policy
from ..policies.evaluated import evaluated
from .branches import Branches
from .tails import Tails
from .wavefront import Call, NumCalls, Wavefront

Index = Tensor | slice
CONDITION = "condition."  # before the names of the condition's tensors among the inputs of a segment
Context = Callable[[], AbstractContextManager[None]]
OnFinished = Callable[[Tensor, Tensor], None]
"""Takes finished branches [n, *shape] and their positions in the list of branches, int64 [n] on the host."""


@dataclass(kw_only=True, eq=False)
class Wave:
    """The buffer of live latents [N + R + C, *shape], trunks and then branches, and the results recorded so far."""

    policy: Policy
    condition: Condition
    table: StepTable
    noise: InitVar[Tensor]
    branches: Branches
    seed: Tensor
    trajectory_ids: Tensor
    tails: Tails
    tail_context: Context
    max_batch: int | None
    checked: Tensor
    guidance_scale: float
    graphs: CudaGraphs | None
    on_finished: OnFinished | None
    least_calls: Sequence[NumCalls]
    num_calls: int = 0
    num_row_evaluations: int = 0

    def __post_init__(self, noise: Tensor) -> None:
        num, own, shape = len(noise), self.branches, noise.shape[1:]
        self.states, self.drawn = (noise.new_empty(n, *shape) for n in (own.num_pairs, own.num_rows))
        self.log_prob = noise.new_empty(own.num_rows, dtype=compute_dtype(noise.dtype))
        self.sources = torch.cat([torch.arange(own.num_rows), self.checked])  # of each branch, and again if checked
        self.latents = noise.new_empty(num + len(self.sources), *shape)
        self.latents[:num] = noise
        self.memory = noise.new_empty(own.num_rows if self.tails.solver != "euler" else 0, *shape)
        self.owners = torch.cat([torch.arange(num), own.trajectories[own.pair_of_row[self.sources]]])
        self.sigma = self.tails.table.sigma.to(noise.device, noise.dtype, non_blocking=True)
        plan = Wavefront(own, self.tails, self.max_batch, self.checked)
        self.plan = [plan.calls(step, least) for step, least in enumerate(self.least_calls)]
        self.born, self.finished_at_birth = plan.born, plan.finished_at_birth
        self.row_counts = self._row_counts()
        if self.graphs:
            self.graphs.begin(self.policy, max(self.row_counts.values()))

    def _row_counts(self) -> dict[int, int]:
        """Rows of a call -> rows of the network call. They differ only where graphs of more shapes would cost too much:
        where there are many counts, or where other iterations have others."""
        counts = {max(len(call), 1) for calls in self.plan for call in calls}
        if not self.graphs:
            return {count: count for count in counts}
        if self.branches.common_steps is None or len(self.checked):
            limit = self.max_batch or bucket(max(counts))
            return {count: min(bucket(count), limit) for count in counts}
        return rounded_counts(counts, MAX_ROW_COUNTS)

    def advance(self, step: int) -> None:
        """Moves all live rows one step, and draws the branches that leave at it."""
        for call in self.plan[step]:
            self._make(call, step)
        born = (self.born == step).nonzero().flatten()
        if len(born):
            drawn = self.drawn[self._there(self.sources[born])]
            self.latents[self._there(len(self.trajectory_ids) + born)] = drawn
        self._finish(self.finished_at_birth(step))

    def _make(self, call: Call, step: int) -> None:
        """Makes one call and moves its rows."""
        velocity, uncond = self._velocity(call)
        place, moved = self._there(call.rows), []
        latents = self.latents[place]
        for run in call.runs:
            guidance: dict[str, Any] = {}
            if uncond is not None:
                guidance = {"velocity_uncond": uncond[run.rows], "guidance_scale": self.guidance_scale}
            x, v, rows = latents[run.rows], velocity[run.rows], call.rows[run.rows]
            if run.num_branches:
                moved.append(self._branch(rows, x, v, step, run.num_branches, guidance))
            elif run.level >= self.table.num_steps and self.tails.solver != "euler":
                guided = ops.guided_velocity(v, **guidance) if guidance else v
                moved.append(self._multistep(rows, x, guided, run.level))
            else:
                moved.append(ops.euler_step(x, v, self.tails.table, run.level, **guidance))
        if moved:
            self.latents[place] = torch.cat(moved)
        self._finish(call.rows[call.finished] - len(self.trajectory_ids))

    def _velocity(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The velocities of the call's rows, and perhaps of more."""
        rows, levels = call.rows, call.levels
        if not len(call):  # a call that only matches those of other processes
            rows = levels = torch.zeros(1, dtype=torch.int64)
        num_rows = self.row_counts[len(rows)]
        rows, levels = _padded(rows, num_rows), _padded(levels, num_rows)
        interruption.before_call()
        condition = self.condition[_compact(self.owners[rows])]
        inputs = {
            "latents": self.latents[self._there(rows)],
            "sigma": self.sigma[self._there(levels)],
            **{CONDITION + name: part for name, part in condition.tensors.items()},
        }
        self.num_calls += 1
        self.num_row_evaluations += num_rows
        scale = self.guidance_scale if call.mode.guided else 1.0
        segment = _segment(self.policy, scale, condition.kinds)
        with self.tail_context() if call.mode.tail else nullcontext():
            if self.graphs is None:
                velocity, *uncond = segment(inputs)
            else:
                velocity, *uncond = self.graphs.run((call.mode.tail, scale, condition.kinds), segment, inputs)
        return velocity, uncond[0] if uncond else None

    def _branch(
        self, trunks: Tensor, latents: Tensor, velocity: Tensor, step: int, count: int, guidance: dict[str, Any]
    ) -> Tensor:
        """Draws `count` branches of each trunk row, records them, and returns the trunks one step later."""
        own = self.branches
        pairs = own.pairs_at(step)[trunks]
        rows = (own.first_rows[pairs][:, None] + torch.arange(count)).flatten()
        ids = self.trajectory_ids[self._there(trunks)]
        moved, drawn, log_prob = ops.branch_step(latents, velocity, self.table, step, count, self.seed, ids, **guidance)
        self.states[self._there(pairs)] = latents
        place = self._there(rows)
        self.drawn[place], self.log_prob[place] = drawn.flatten(0, 1), log_prob.flatten()
        return moved

    def _multistep(self, rows: Tensor, latents: Tensor, velocity: Tensor, level: int) -> Tensor:
        """Moves rows of tails by a solver that remembers the step before."""
        place, correction = self._there(rows - len(self.trajectory_ids)), self.tails.corrections[level]
        now = self.tails.remembered(level, latents, velocity)
        if correction:
            velocity = velocity + correction * (now - self.memory[place])
        self.memory[place] = now
        return ops.euler_step(latents, velocity, self.tails.table, level)

    def _finish(self, rows: Tensor) -> None:
        """Hands over finished branches."""
        if self.on_finished is not None and len(rows):
            self.on_finished(self.latents[self._there(len(self.trajectory_ids) + rows)], rows)

    def _there(self, index: Tensor) -> Index:
        """Rows on the host as an index on the device."""
        rows = _compact(index)
        return rows if isinstance(rows, slice) else rows.to(self.latents.device, non_blocking=True)


def _compact(index: Tensor) -> Index:
    """Rows on the host as a slice where they are consecutive, which copies nothing."""
    if len(index) and bool((index.diff() == 1).all()):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def _segment(policy: Policy, guidance_scale: float, kinds: tuple[Hashable, ...] | None) -> Segment:
    """One network call as a function of device tensors alone.

    Its inputs are latents [R, *shape], sigma [R] and the condition's tensors [R, ...]; its outputs are the velocity
    and, if there is one, the unconditional velocity.
    """

    def evaluate(inputs: Tensors) -> tuple[Tensor, ...]:
        named = {name.removeprefix(CONDITION): part for name, part in inputs.items() if name.startswith(CONDITION)}
        velocity, uncond = evaluated(
            policy, inputs["latents"], inputs["sigma"], Condition(named, kinds), guidance_scale
        )
        return (velocity,) if uncond is None else (velocity, uncond)

    return evaluate


def _padded(rows: Tensor, length: int) -> Tensor:
    """`rows`, the last one repeated up to `length`."""
    return torch.cat([rows, rows[-1:].expand(length - len(rows))])
