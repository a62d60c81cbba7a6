"""The steps of a rollout: guided_velocity, euler_step, branch_step, initial_noise, each in one pass over the data."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .density import log_densities
from .launch import block_size, blocks_of, launch, rows, step_of, with_length
from .noise import normals, sum_squares
from .rows import DT, A, B, S, coefficient, load_guided, load_row, locate, scaled_sum, store_row

INITIAL_NOISE_STEP = tl.constexpr(0xFFFF)  # as in csrc/noise.h


@triton.jit
def guided_velocity_kernel(out, v, u, scale, numel, BLOCK: tl.constexpr):
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    store_row(out, numel, row, first, inside, load_guided(v, u, scale, row, first, inside, BLOCK), BLOCK)


@triton.jit(do_not_specialize=["step"])
def euler_step_kernel(out, x_rows, v_rows, u_rows, scale, coefficients, step, numel, BLOCK: tl.constexpr):
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    x = load_row(x_rows, row, first, inside, BLOCK)
    v = load_guided(v_rows, u_rows, scale, row, first, inside, BLOCK)
    store_row(out, numel, row, first, inside, scaled_sum(coefficient(coefficients, step, DT), v, x, BLOCK), BLOCK)


@triton.jit(do_not_specialize=["step", "num_branches"], do_not_specialize_on_alignment=["seed", "trajectory_ids"])
def branch_step_kernel(
    latents_next, branches, partial, x_rows, v_rows, u_rows, scale, coefficients, step, num_branches, seed,
    trajectory_ids, numel, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of the trunk's step, the same block of every branch, and the sums of z^2 behind their log-densities."""
    row, block, first, inside = locate(tl.program_id(0), numel, BLOCK)
    x = load_row(x_rows, row, first, inside, BLOCK)
    v = load_guided(v_rows, u_rows, scale, row, first, inside, BLOCK)
    euler = scaled_sum(coefficient(coefficients, step, DT), v, x, BLOCK)
    store_row(latents_next, numel, row, first, inside, euler, BLOCK)
    mean = scaled_sum(coefficient(coefficients, step, A), x, coefficient(coefficients, step, B) * v, BLOCK)
    s, blocks = coefficient(coefficients, step, S), tl.cdiv(numel, BLOCK)
    key, trajectory_id, inverse = tl.load(seed), tl.load(trajectory_ids + row), 1.0 / s
    for branch in range(num_branches):
        eps, n0, n1, n2, n3 = normals(key, trajectory_id, branch | (step << 16), first, BLOCK)
        sample = scaled_sum(s, eps, mean, BLOCK).to(branches.dtype.element_ty)
        place = row * num_branches + branch
        store_row(branches, numel, place, first, inside, sample, BLOCK)
        if branches.dtype.element_ty == tl.float32:
            square = sum_squares(n0, n1, n2, n3, numel - first)
        else:  # the density is that of the rounded value
            z = (sample.to(tl.float32) - mean) * inverse
            square = tl.sum(tl.where(inside, z * z, 0.0))
        tl.store(partial + place * blocks + block, square)


@triton.jit(do_not_specialize_on_alignment=["seed", "trajectory_ids"])
def initial_noise_kernel(out, trajectory_ids, seed, numel, BLOCK: tl.constexpr):
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    eps = normals(tl.load(seed), tl.load(trajectory_ids + row), INITIAL_NOISE_STEP << 16, first, BLOCK)[0]
    store_row(out, numel, row, first, inside, eps, BLOCK)


def guided_velocity(velocity: Tensor, velocity_uncond: Tensor, guidance_scale: float) -> Tensor:
    """See tempflow_fast/ops/reference.py; one launch."""
    num_rows, numel = velocity.shape
    v = rows("guided_velocity", "velocity", velocity, velocity)
    u = rows("guided_velocity", "velocity_uncond", velocity_uncond, velocity)
    out = velocity.new_empty(num_rows, numel)
    if num_rows:
        launch(
            guided_velocity_kernel, num_rows * blocks_of(numel, velocity.dtype), out.device,
            out, v, u, guidance_scale, numel, BLOCK=block_size(velocity.dtype),
        )  # fmt: skip
    return out


def euler_step(
    latents: Tensor,
    velocity: Tensor,
    velocity_uncond: Tensor | None,
    guidance_scale: float,
    coefficients: Tensor,
    step: int,
) -> Tensor:
    """See tempflow_fast/ops/reference.py; one launch."""
    num_rows, numel = latents.shape
    state = _state("euler_step", latents, velocity, velocity_uncond, guidance_scale, coefficients, step)
    out = latents.new_empty(num_rows, numel)
    if num_rows:
        programs = num_rows * blocks_of(numel, latents.dtype)
        launch(euler_step_kernel, programs, out.device, out, *state, numel, BLOCK=block_size(latents.dtype))
    return out


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
    """See tempflow_fast/ops/reference.py; two launches, the second of which reads only the sums of the first."""
    num_rows, numel = latents.shape
    state = _state("branch_step", latents, velocity, velocity_uncond, guidance_scale, coefficients, step)
    latents_next, branches = latents.new_empty(num_rows, numel), latents.new_empty(num_rows, num_branches, numel)
    if not num_rows:
        return latents_next, branches, latents.new_empty(0, num_branches, dtype=torch.float32)
    blocks = blocks_of(numel, latents.dtype)
    partial = latents.new_empty(num_rows, num_branches, blocks, dtype=torch.float32)
    launch(
        branch_step_kernel, num_rows * blocks, latents.device,
        latents_next, branches, partial, *state, num_branches, seed, trajectory_ids, numel,
        BLOCK=block_size(latents.dtype),
    )  # fmt: skip
    return latents_next, branches, log_densities(partial, coefficients, None, step, numel, (num_rows, num_branches))


def initial_noise(trajectory_ids: Tensor, seed: Tensor, numel: int) -> Tensor:
    """See tempflow_fast/ops/reference.py; one launch."""
    out = trajectory_ids.new_empty(trajectory_ids.shape[0], numel, dtype=torch.float32)
    if out.numel():
        programs = out.shape[0] * blocks_of(numel, out.dtype)
        block = block_size(out.dtype)
        launch(initial_noise_kernel, programs, out.device, out, trajectory_ids, seed, numel, BLOCK=block)
    return out


def _state(
    op: str,
    latents: Tensor,
    velocity: Tensor,
    velocity_uncond: Tensor | None,
    guidance_scale: float,
    coefficients: Tensor,
    step: int,
) -> tuple[Any, ...]:
    """The arguments that euler_step and branch_step share, as their kernels take them."""
    named = {"latents": latents, "velocity": velocity, "velocity_uncond": velocity_uncond}
    data = (rows(op, name, tensor, latents) for name, tensor in named.items())
    return *data, guidance_scale, with_length(coefficients), step_of(op, coefficients, step)
