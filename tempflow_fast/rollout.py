"""Trunk, branches and tails, advanced together as one wavefront."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .batching import equal_pieces
from .policies.base import Condition, Policy
from .schedule import StepTable


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
) -> Rollout:
    """Draws the branches of N trajectories (TempFlow-GRPO, arXiv 2508.04324) in T network calls.

    All live latents stand in one buffer: N trunk rows, then per branch step a block [K, N]. At every step the live rows
    are contiguous, and row r belongs to trajectory r % N, so one call on a slice of buffer and condition advances the
    trunk and every branch drawn so far. The trunk ends at the last branch step.

    Args:
        policy: the acting policy.
        condition: [N] rows from `policy.encode`, guided unless guidance_scale is 1.
        table: sampler, sigmas and branch steps.
        noise: initial latents [N, *policy.latent_shape], float32 (or float64 with a float64 policy).
        num_branches: K.
        seed: key of the branch noise.
        trajectory_ids: [N] global ids; equal ids draw equal noise under one seed. None: 0..N-1.
        max_batch: most rows in one network call; None: no limit.
        guidance_scale: g in v = v_uncond + g (v_cond - v_uncond); 1 turns guidance off.

    Raises:
        ValueError: before the first network call, naming the argument that does not fit.
    """
    _check(policy, condition, table, noise, num_branches, max_batch)
    ids = _checked_ids(trajectory_ids, noise)
    wave = _Wave(policy, condition, table, noise, num_branches, max_batch, guidance_scale)
    states, branches, log_prob = [], [], []
    for step in range(table.num_steps):
        wave.evaluate(step)
        if step in table.branch_steps:
            states.append(wave.trunk)
            drawn, density = wave.branch(step, seed, ids)
            branches.append(drawn)
            log_prob.append(density)
        else:
            wave.advance(step)
    return Rollout(
        states=torch.stack(states, dim=1),
        branches=torch.stack(branches, dim=1),
        log_prob=torch.stack(log_prob, dim=1),
        latents=wave.finished(),
        condition=condition,
        trajectory_ids=ids,
        table=table,
        num_calls=wave.num_calls,
        num_row_evaluations=wave.num_row_evaluations,
    )


class _Wave:
    """The buffer of live latents, [N (1 + B K), *shape], its active rows, and their velocities at the current step."""

    def __init__(
        self,
        policy: Policy,
        condition: Condition,
        table: StepTable,
        noise: Tensor,
        num_branches: int,
        max_batch: int | None,
        guidance_scale: float,
    ) -> None:
        self.policy, self.table, self.max_batch, self.guidance_scale = policy, table, max_batch, guidance_scale
        self.num, self.num_branches = len(noise), num_branches
        num_blocks = 1 + len(table.branch_steps) * num_branches
        self.latents = noise.new_empty(num_blocks * self.num, *noise.shape[1:])
        self.latents[: self.num] = noise
        # Laid out once: every call takes a slice, none copies the text again.
        self.condition = condition.tile(num_blocks)
        self.start, self.end = 0, self.num
        self.num_calls = self.num_row_evaluations = 0

    @property
    def trunk(self) -> Tensor:
        """A copy of the trunk's latents, [N, *shape]."""
        return self.latents[: self.num].clone()

    def evaluate(self, step: int) -> None:
        """Calls the network on the active rows."""
        if step > self.table.branch_steps[-1]:
            self.start = self.num
        sigma = self.table.sigma[step].item()
        outputs = []
        for piece in equal_pieces(self.end - self.start, self.max_batch):
            rows = slice(self.start + piece.start, self.start + piece.stop)
            outputs.append(self.policy.velocity(self.latents[rows], sigma, self.condition[rows], self.guidance_scale))
        self.num_calls += len(outputs)
        self.num_row_evaluations += self.end - self.start
        velocity, uncond = zip(*outputs, strict=True)
        self.velocity, self.uncond = _joined(velocity), None if uncond[0] is None else _joined(uncond)

    def branch(self, step: int, seed: int, trajectory_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Draws K branches of every trunk row, advances all rows and appends the branches: [N, K, *shape], [N, K]."""
        trunk, tails = slice(0, self.num), slice(self.num, self.end)
        moved, drawn, log_prob = ops.branch_step(
            self.latents[trunk],
            self.velocity[trunk],
            self.table,
            step,
            num_branches=self.num_branches,
            seed=seed,
            trajectory_ids=trajectory_ids,
            **self._guidance(trunk),
        )
        self._euler(tails, step)
        self.latents[trunk] = moved
        self.end += self.num * self.num_branches
        self.latents[tails.stop : self.end] = drawn.transpose(0, 1).flatten(0, 1)
        return drawn, log_prob

    def advance(self, step: int) -> None:
        """Moves the active rows one ODE step."""
        self._euler(slice(self.start, self.end), step)

    def _euler(self, rows: slice, step: int) -> None:
        local = slice(rows.start - self.start, rows.stop - self.start)
        self.latents[rows] = ops.euler_step(
            self.latents[rows], self.velocity[local], self.table, step, **self._guidance(local)
        )

    def _guidance(self, local: slice) -> dict[str, Any]:
        if self.uncond is None:
            return {}
        return {"velocity_uncond": self.uncond[local], "guidance_scale": self.guidance_scale}

    def finished(self) -> Tensor:
        """All branches, [N, B, K, *shape]."""
        shape = (len(self.table.branch_steps), self.num_branches, self.num)
        return self.latents[self.num :].unflatten(0, shape).movedim(2, 0)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _checked_ids(trajectory_ids: Tensor | Sequence[int] | None, noise: Tensor) -> Tensor:
    """int64 [N] on the device of `noise`."""
    if trajectory_ids is None:
        return torch.arange(len(noise), device=noise.device)
    ids = torch.as_tensor(trajectory_ids, dtype=torch.int64, device=noise.device)
    if ids.shape != noise.shape[:1]:
        raise ValueError(f"rollout: trajectory_ids must be [{len(noise)}] like noise, got {list(ids.shape)}")
    return ids


def _check(
    policy: Policy, condition: Condition, table: StepTable, noise: Tensor, num_branches: int, max_batch: int | None
) -> None:
    if noise.dim() == 0 or not len(noise) or noise.shape[1:] != tuple(policy.latent_shape):
        want = ", ".join(map(str, policy.latent_shape))
        raise ValueError(f"rollout: noise must be [N, {want}] with N >= 1, got {list(noise.shape)}")
    if len(condition) != len(noise):
        raise ValueError(f"rollout: condition must have {len(noise)} rows like noise, got {len(condition)}")
    if not table.branch_steps:
        raise ValueError("rollout: table must have a branch step, got none")
    if num_branches < 1:
        raise ValueError(f"rollout: num_branches must be >= 1, got {num_branches}")
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"rollout: max_batch must be >= 1 or None, got {max_batch}")
