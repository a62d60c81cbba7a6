"""What the ops replace, in PyTorch: as public training scripts write it, and as one writes it with care.

All take a state of N rows and draw or train K branches per row; coefficients are Python floats, which favours them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """Scalars of one row of a step table."""

    dt: float
    a: float
    b: float
    s: float
    weight: float


def script_branch_step(
    latents: Tensor, velocity: Tensor, step: Step, num_branches: int
) -> tuple[Tensor, Tensor, Tensor]:
    """K copies of the state, a density of every element, then their mean."""
    x = latents.repeat_interleave(num_branches, 0).float()
    v = velocity.repeat_interleave(num_branches, 0).float()
    mean = x * step.a + v * step.b
    branches = mean + step.s * torch.randn_like(mean)
    density = -((branches - mean) ** 2) / (2 * step.s**2) - math.log(step.s) - 0.5 * math.log(2 * math.pi)
    shape = (len(latents), num_branches)
    moved = (latents.float() + step.dt * velocity.float()).to(latents.dtype)
    return moved, branches.to(latents.dtype).unflatten(0, shape), density.mean(1).unflatten(0, shape)


def tuned_branch_step(
    latents: Tensor, velocity: Tensor, step: Step, num_branches: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One mean for all branches, no copies of the state, the density from the noise itself."""
    n, d = latents.shape
    x, v = latents.float(), velocity.float()
    mean = torch.add(x * step.a, v, alpha=step.b)
    eps = torch.randn(n, num_branches, d, device=x.device)
    log_prob = -0.5 * eps.square().mean(-1) - math.log(step.s) - 0.5 * math.log(2 * math.pi)
    branches = torch.add(mean.unsqueeze(1), eps, alpha=step.s)
    return torch.add(x, v, alpha=step.dt).to(latents.dtype), branches.to(latents.dtype), log_prob


class LossInputs(NamedTuple):
    """Arguments of a policy loss of N rows and K branches."""

    latents: Tensor
    branches: Tensor
    velocity_old: Tensor
    advantages: Tensor
    step: Step
    clip_range: float


def _clipped(log_ratio: Tensor, inputs: LossInputs) -> Tensor:
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - inputs.clip_range, 1 + inputs.clip_range)
    return inputs.step.weight * torch.maximum(-inputs.advantages * ratio, -inputs.advantages * clipped).mean()


def script_policy_loss(velocity: Tensor, inputs: LossInputs) -> Tensor:
    """exp(new - old) of two log-densities, on K copies of the state."""
    step, k = inputs.step, inputs.branches.shape[1]
    x, branches = inputs.latents.float().repeat_interleave(k, 0), inputs.branches.float().flatten(0, 1)

    def density(v: Tensor) -> Tensor:
        mean = x * step.a + v.float().repeat_interleave(k, 0) * step.b
        return (-((branches - mean) ** 2) / (2 * step.s**2) - math.log(step.s) - 0.5 * math.log(2 * math.pi)).mean(1)

    with torch.no_grad():
        old = density(inputs.velocity_old)
    return _clipped((density(velocity) - old).unflatten(0, (-1, k)), inputs)


def tuned_policy_loss(velocity: Tensor, inputs: LossInputs) -> Tensor:
    """The closed form of the log-ratio, branches sharing their state."""
    step = inputs.step
    x, v, old = inputs.latents.float(), velocity.float(), inputs.velocity_old.float()
    shift = (step.b * (v - old)).unsqueeze(1)
    mean_old = torch.add(step.a * x, old, alpha=step.b).unsqueeze(1)
    log_ratio = (shift * (2 * (inputs.branches.float() - mean_old) - shift)).mean(-1) / (2 * step.s**2)
    return _clipped(log_ratio, inputs)


def guided(velocity: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance."""
    return uncond + scale * (velocity - uncond)


def euler_step(latents: Tensor, velocity: Tensor, uncond: Tensor, scale: float, step: Step) -> Tensor:
    """Guidance and an ODE step in float32."""
    v = guided(velocity.float(), uncond.float(), scale)
    return torch.add(latents.float(), v, alpha=step.dt).to(latents.dtype)


def guided_branch_step(
    latents: Tensor, velocity: Tensor, uncond: Tensor, scale: float, step: Step, num_branches: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Guidance, then the branch step with care."""
    return tuned_branch_step(latents, guided(velocity.float(), uncond.float(), scale), step, num_branches)


def log_prob(latents_next: Tensor, latents: Tensor, velocity: Tensor, step: Step) -> Tensor:
    """The density of a step, a mean over elements."""
    mean = torch.add(step.a * latents.float(), velocity.float(), alpha=step.b)
    squares = (latents_next.float() - mean).square().mean(-1)
    return -squares / (2 * step.s**2) - math.log(step.s) - 0.5 * math.log(2 * math.pi)


def kl(velocity: Tensor, velocity_ref: Tensor, step: Step) -> Tensor:
    """Of two policies' steps, from their means: a mean over rows and elements."""
    return (step.b * (velocity.float() - velocity_ref.float())).square().mean() / (2 * step.s**2)
