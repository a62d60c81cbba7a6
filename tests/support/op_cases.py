"""Inputs of all ops in every dtype, and the float64 loss to compare with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tempflow_fast import linear_sigmas, ops, step_table

TABLE = step_table(linear_sigmas(8, 3.0))
ROWS = TABLE.coefficients()
STEPS = torch.tensor([0, 3, 6, 6, 2])
IDS = torch.tensor([4, 2**33, 0, 7, 1])
SCALE, SEED, K = 4.5, 77, 3


class Case(NamedTuple):
    """Inputs of all ops in one dtype; `branches` were drawn by the float64 reference and rounded."""

    latents: Tensor
    velocity: Tensor
    uncond: Tensor | None
    branches: Tensor
    velocity_old: Tensor
    velocity_ref: Tensor
    advantages: Tensor

    @property
    def scale(self) -> float:
        return SCALE if self.uncond is not None else 1.0


def make_case(dtype: torch.dtype, numel: int, guided: bool, num_rows: int = 5) -> Case:
    """Latent rows of a wider buffer (so not contiguous), a policy some updates away from the one that acted."""
    generator = torch.Generator().manual_seed(numel)

    def rows(scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(num_rows, numel + 2, generator=generator)).to(dtype)[:, 1 : numel + 1]

    latents, velocity, uncond = rows(), rows(), rows() if guided else None
    old = (velocity.double() + 0.02 * rows().double()).to(dtype)
    if guided:
        old = ops.guided_velocity(old, uncond, SCALE)
    steps = STEPS[:num_rows]
    mean = ROWS[steps, 1, None] * latents.double() + ROWS[steps, 2, None] * old.double()
    eps = torch.randn(num_rows, K, numel, generator=generator, dtype=torch.float64)
    branches = (mean[:, None] + ROWS[steps, 3, None, None] * eps).to(dtype)
    advantages = torch.randn(num_rows, K, generator=generator)
    return Case(latents, velocity, uncond, branches, old, rows(), advantages)


def oracle(case: Case, clip_range: float, beta: float) -> tuple[Tensor, ...]:
    """The float64 loss by autograd through textbook formulas, with the guidance that the op rounds like its inputs."""
    guided = case.velocity if case.uncond is None else ops.guided_velocity(case.velocity, case.uncond, SCALE)
    v = guided.double().requires_grad_()
    x, old, ref, branches = (t.double() for t in (case.latents, case.velocity_old, case.velocity_ref, case.branches))
    _, a, b, s, weight = ROWS[STEPS].unsqueeze(1).unbind(-1)

    def density(velocity: Tensor) -> Tensor:
        return -((branches - (a * x + b * velocity)[:, None]) ** 2).mean(-1) / (2 * s**2)

    log_ratio = density(v) - density(old)
    ratio, advantages = log_ratio.exp(), case.advantages.double()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    kl = ((b * (v - ref)) ** 2).mean(1, keepdim=True).div(2 * s**2).mean()
    loss = (weight * torch.maximum(-advantages * ratio, -advantages * clipped)).mean() + beta * kl
    loss.backward()
    outside = ((ratio < 1 - clip_range) | (ratio > 1 + clip_range)).double().mean()
    return loss.detach(), log_ratio.detach(), outside, kl.detach(), v.grad
