"""The ops in plain PyTorch: the specification, the oracle of the tests, and the body where there is no compiled one.

Signatures are those of the schemas: latents flattened to [N, D], the rows of a step table as float64
`coefficients` [T, 5] (dt, a, b, s, noise_weight). Arithmetic is float64 for float64 inputs and float32 otherwise.
The public functions in sample.py and loss.py document the arguments.
Results are contiguous: PyTorch lays out those of overlapping rows in another way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import noise

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an op computes and returns statistics, given the dtype of its latents."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _guided(velocity: Tensor, velocity_uncond: Tensor | None, guidance_scale: float) -> Tensor:
    """v_uncond + scale (v_cond - v_uncond), in the compute dtype."""
    wide = velocity.to(compute_dtype(velocity.dtype))
    if velocity_uncond is None:
        return wide
    uncond = velocity_uncond.to(wide.dtype)
    return uncond + guidance_scale * (wide - uncond)


def _rows(coefficients: Tensor, steps: Tensor | int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(dt, a, b, s, noise_weight) of one step, as scalars, or of one step per row, as [R, 1] each."""
    rows = coefficients[steps].to(dtype)
    return rows.unbind(-1) if rows.dim() == 1 else rows.unsqueeze(1).unbind(-1)


def guided_velocity(velocity: Tensor, velocity_uncond: Tensor, guidance_scale: float) -> Tensor:
    """The guided velocity [N, D] as `policy_loss` forms it: rounded to the velocity's dtype."""
    return _guided(velocity, velocity_uncond, guidance_scale).to(velocity.dtype).contiguous()


def euler_step(
    latents: Tensor,
    velocity: Tensor,
    velocity_uncond: Tensor | None,
    guidance_scale: float,
    coefficients: Tensor,
    step: int,
) -> Tensor:
    """latents + dt v, [N, D]."""
    v = _guided(velocity, velocity_uncond, guidance_scale)
    dt, *_ = _rows(coefficients, step, v.dtype)
    return (latents.to(v.dtype) + dt * v).to(latents.dtype).contiguous()


def branch_step(
    latents: Tensor,
    velocity: Tensor,
    velocity_uncond: Tensor | None,
    guidance_scale: float,
    coefficients: Tensor,
    step: int,
    num_branches: int,
    seed: Tensor,
    trajectory_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The trunk's next latents [N, D], K branches a x + b v + s eps [N, K, D] and their log-densities [N, K]."""
    v = _guided(velocity, velocity_uncond, guidance_scale)
    dt, a, b, s, _ = _rows(coefficients, step, v.dtype)
    x = latents.to(v.dtype)
    eps = noise.normals(trajectory_ids, seed, step, num_branches, latents.shape[1]).to(v.dtype)
    mean = (a * x + b * v).unsqueeze(1)
    branches = (mean + s * eps).to(latents.dtype)
    if latents.dtype != v.dtype:  # the density is that of the rounded value
        eps = (branches.to(v.dtype) - mean) / s
    log_prob = -0.5 * eps.detach().square().mean(-1) - s.log() - HALF_LOG_TWO_PI
    return (x + dt * v).to(latents.dtype).contiguous(), branches, log_prob


def initial_noise(trajectory_ids: Tensor, seed: Tensor, numel: int) -> Tensor:
    """The unit Gaussian start of every trajectory, float32 [N, numel]."""
    return noise.normals(trajectory_ids, seed, noise.INITIAL_NOISE_STEP, 1, numel).squeeze(1).to(torch.float32)


def log_prob(latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor) -> Tensor:
    """Log-density of `latents_next` [R, D] under its SDE step, a mean over the D elements: [R]."""
    residual, s, _ = _residual(latents_next, latents, velocity, coefficients, steps)
    return (-0.5 * (residual / s).square().mean(1, keepdim=True) - s.log() - HALF_LOG_TWO_PI).squeeze(1)


def log_prob_backward(
    grad: Tensor, latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor
) -> Tensor:
    """The gradient of `log_prob` with respect to the velocity, times `grad` [R]: [R, D]."""
    residual, s, b = _residual(latents_next, latents, velocity, coefficients, steps)
    return (
        (grad.to(s.dtype).unsqueeze(1) * b / (s.square() * latents.shape[1]) * residual).to(velocity.dtype).contiguous()
    )


def _residual(
    latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(latents.dtype)
    _, a, b, s, _ = _rows(coefficients, steps, dtype)
    return latents_next.to(dtype) - (a * latents.to(dtype) + b * velocity.to(dtype)), s, b


def policy_loss(
    velocity: Tensor,
    velocity_uncond: Tensor | None,
    latents: Tensor,
    branches: Tensor,
    velocity_old: Tensor,
    velocity_ref: Tensor | None,
    advantages: Tensor,
    coefficients: Tensor,
    steps: Tensor,
    guidance_scale: float,
    clip_range: float,
    beta: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The clipped, noise-weighted loss of R rows with K branches, and its gradient with respect to the guided velocity.

    Returns:
        loss [], log_ratio [R, K], clip_fraction [], kl [] and gradient [R, D] ([0] without `with_gradient`).
    """
    dtype = compute_dtype(velocity.dtype)
    num_rows, num_branches, numel = branches.shape
    v = velocity.to(dtype) if velocity_uncond is None else guided_velocity(velocity, velocity_uncond, guidance_scale)
    v, v_old, x, branches = v.to(dtype), velocity_old.to(dtype), latents.to(dtype), branches.to(dtype)
    _, a, b, s, noise_weight = _rows(coefficients, steps, dtype)
    # A negative weight asks for the normalised ratio: log r is divided by s instead of s^2, and has no bias.
    normalised, noise_weight = noise_weight < 0, noise_weight.abs()
    unit, bias = torch.where(normalised, s, s.square()), torch.where(normalised, 0.0, 1.0).to(dtype)
    # log r as one mean of products with v - v_old: exactly 0 for an unchanged policy, and nothing cancels close to it.
    shift = (b * (v - v_old)).unsqueeze(1)
    residual_old = branches - (a * x + b * v_old).unsqueeze(1)
    log_ratio = (shift * (2 * residual_old - bias.unsqueeze(1) * shift)).mean(-1) / (2 * unit)

    advantage = advantages.to(dtype)
    # Clipping compares log r: near 1, float32 values of r are 1.2e-7 apart, which is too coarse for small clip ranges.
    above, below = log_ratio > math.log1p(clip_range), log_ratio < math.log1p(-clip_range)
    # -min(r A, clip(r, 1 - c, 1 + c) A): the clipped term is the smaller one above for A > 0 and below for A < 0.
    clipped_above, clipped_below = above & (advantage > 0), below & (advantage < 0)
    # Where a ratio is clipped, exp() gets 0: an infinite ratio times a derivative of 0 would be NaN.
    unclipped = -advantage * torch.where(clipped_above | clipped_below, 0.0, log_ratio).exp()
    value = torch.where(clipped_above, -advantage * (1 + clip_range), unclipped)
    value = torch.where(clipped_below, -advantage * (1 - clip_range), value)
    count = max(num_rows * num_branches, 1)
    loss = (noise_weight * value).sum() / count
    clip_fraction = (above | below).to(dtype).sum() / count

    kl = torch.zeros((), dtype=dtype, device=velocity.device)
    kl_scale = (b / s).square() / (2 * numel * max(num_rows, 1))
    if velocity_ref is not None:
        difference_ref = v - velocity_ref.to(dtype)
        kl = (kl_scale * difference_ref.square()).sum()
        loss = loss + beta * kl
    if not with_gradient:
        return loss, log_ratio.detach(), clip_fraction, kl.detach(), velocity.new_empty(0, dtype=dtype)
    log_ratio_grad = torch.where(clipped_above | clipped_below, 0.0, noise_weight * unclipped / count)
    residual = branches - (a * x + b * torch.where(normalised, v_old, v)).unsqueeze(1)
    gradient = (log_ratio_grad.unsqueeze(-1) * residual).sum(1) * (b / (unit * numel))
    if velocity_ref is not None:
        gradient = gradient + 2 * beta * kl_scale * difference_ref
    return loss, log_ratio.detach(), clip_fraction, kl.detach(), gradient.detach().contiguous()
