"""The moves of a rollout: guided_velocity, euler_step, branch_step, initial_noise. One pass over the data each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .density import finish
from .launch import blocks_of, launch, rows, step_of, tile
from .noise import normals
from .rows import load_guided, load_row, locate, step_row

INITIAL_NOISE_STEP = tl.constexpr(0xFFFF)  # as in csrc/noise.h


@triton.jit
def guided_kernel(out, v, v_stride, u, u_stride, scale, numel, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    value = load_guided(v, v_stride, u, u_stride, scale, row, first, inside, BLOCK)
    tl.store(out + row * numel + first + tl.arange(0, BLOCK), value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def euler_move(out, x, v, dt, row, numel, first, inside, BLOCK: tl.constexpr):
    """Store x + dt v."""
    value = tl.fma(tl.full([BLOCK], dt, tl.float32), v, x).to(out.dtype.element_ty)
    tl.store(out + row * numel + first + tl.arange(0, BLOCK), value, mask=inside)


@triton.jit(do_not_specialize=["num_steps", "step"])
def euler_kernel(
    out, x_rows, x_stride, v_rows, v_stride, u_rows, u_stride, scale, table, num_steps, step, numel,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    dt, _, _, _, _ = step_row(table, num_steps, step)
    x = load_row(x_rows, x_stride, row, first, inside, BLOCK)
    v = load_guided(v_rows, v_stride, u_rows, u_stride, scale, row, first, inside, BLOCK)
    euler_move(out, x, v, dt, row, numel, first, inside, BLOCK)


@triton.jit(do_not_specialize=["num_steps", "step", "num_branches"], do_not_specialize_on_alignment=["seed", "ids"])
def branch_kernel(
    moved, branches, partial, x_rows, x_stride, v_rows, v_stride, u_rows, u_stride, scale, table, num_steps, step,
    num_branches, seed, ids, numel, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """A block of the trunk's move, the same block of every branch, and the sums of z^2 behind their log-densities."""
    row, block, first, inside = locate(tl.program_id(0), numel, BLOCK)
    dt, a, b, s, _ = step_row(table, num_steps, step)
    x = load_row(x_rows, x_stride, row, first, inside, BLOCK)
    v = load_guided(v_rows, v_stride, u_rows, u_stride, scale, row, first, inside, BLOCK)
    euler_move(moved, x, v, dt, row, numel, first, inside, BLOCK)
    mean = tl.fma(tl.full([BLOCK], a, tl.float32), x, b * v)
    key, trajectory_id, inverse = tl.load(seed), tl.load(ids + row), 1.0 / s
    spread, blocks = tl.full([BLOCK], s, tl.float32), tl.cdiv(numel, BLOCK)
    for branch in range(num_branches):
        eps = normals(key, trajectory_id, branch | (step << 16), first, BLOCK, VECTOR)
        sample = tl.fma(spread, eps, mean).to(branches.dtype.element_ty)
        place = row * num_branches + branch
        tl.store(branches + place * numel + first + tl.arange(0, BLOCK), sample, mask=inside)
        if branches.dtype.element_ty != tl.float32:  # rounding to a narrow dtype is part of the sample
            eps = (sample.to(tl.float32) - mean) * inverse
        tl.store(partial + place * blocks + block, tl.sum(tl.where(inside, eps * eps, 0.0)))


@triton.jit(do_not_specialize_on_alignment=["seed", "ids"])
def initial_noise_kernel(out, ids, seed, numel, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    eps = normals(tl.load(seed), tl.load(ids + row), INITIAL_NOISE_STEP << 16, first, BLOCK, VECTOR)
    tl.store(out + row * numel + first + tl.arange(0, BLOCK), eps, mask=inside)


def guided_velocity(velocity: Tensor, velocity_uncond: Tensor, guidance_scale: float) -> Tensor:
    """See tempflow_fast/reference.py; one launch."""
    num_rows, numel = velocity.shape
    v = rows("guided_velocity", "velocity", velocity, velocity)
    u = rows("guided_velocity", "velocity_uncond", velocity_uncond, velocity)
    out = velocity.new_empty(num_rows, numel)
    if num_rows:
        programs = num_rows * blocks_of(numel, velocity.dtype)
        launch(guided_kernel, programs, out, *v, *u, guidance_scale, numel, **tile(velocity.dtype))
    return out


def euler_step(
    latents: Tensor,
    velocity: Tensor,
    velocity_uncond: Tensor | None,
    guidance_scale: float,
    coefficients: Tensor,
    step: int,
) -> Tensor:
    """See tempflow_fast/reference.py; one launch."""
    num_rows, numel = latents.shape
    state = _state("euler_step", latents, velocity, velocity_uncond, guidance_scale, coefficients, step)
    out = latents.new_empty(num_rows, numel)
    if num_rows:
        launch(euler_kernel, num_rows * blocks_of(numel, latents.dtype), out, *state, numel, **tile(latents.dtype))
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
    """See tempflow_fast/reference.py; two launches, the second over the sums of the first alone."""
    num_rows, numel = latents.shape
    state = _state("branch_step", latents, velocity, velocity_uncond, guidance_scale, coefficients, step)
    moved, branches = latents.new_empty(num_rows, numel), latents.new_empty(num_rows, num_branches, numel)
    if not num_rows:
        return moved, branches, latents.new_empty(0, num_branches, dtype=torch.float32)
    blocks = blocks_of(numel, latents.dtype)
    partial = latents.new_empty(num_rows, num_branches, blocks, dtype=torch.float32)
    launch(
        branch_kernel, num_rows * blocks,
        moved, branches, partial, *state, num_branches, seed, trajectory_ids, numel, **tile(latents.dtype),
    )  # fmt: skip
    return moved, branches, finish(partial, coefficients, None, step, numel, (num_rows, num_branches))


def initial_noise(trajectory_ids: Tensor, seed: Tensor, numel: int) -> Tensor:
    """See tempflow_fast/reference.py; one launch."""
    out = trajectory_ids.new_empty(trajectory_ids.shape[0], numel, dtype=torch.float32)
    if out.numel():
        programs = out.shape[0] * blocks_of(numel, out.dtype)
        launch(initial_noise_kernel, programs, out, trajectory_ids, seed, numel, **tile(out.dtype))
    return out


def _state(op: str, latents: Tensor, velocity: Tensor, uncond: Tensor | None, scale: float, table: Tensor, step: int):
    """The arguments that euler_step and branch_step share, as their kernels take them."""
    named = {"latents": latents, "velocity": velocity, "velocity_uncond": uncond}
    flat = [part for name, tensor in named.items() for part in rows(op, name, tensor, latents)]
    return *flat, scale, table, table.shape[0], step_of(op, table, step)
