"""Log-densities: sums of z^2 per block, then their sum per row; and the gradient of log_prob."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Coefficients, Rows, block_size, blocks_of, launch, rows, with_length
from .rows import A, B, S, coefficient, load_row, locate, scaled_sum, store_row, sum_blocks

HALF_LOG_TWO_PI = tl.constexpr(0.5 * math.log(2 * math.pi))  # of the normal density
# What a program of the second launch takes: log-densities, and partial sums of each that it reads at once. The tile of
# 32 x 64 float32 is 8 numbers a thread, so that latents of D = 65,536 (64 blocks in float32) need one read.
DENSITIES, PARTIALS = 32, 64


@triton.jit
def residual(latents_next, latents, velocity, coefficients, step, row, first, inside, BLOCK: tl.constexpr):
    """x' - a x - b v; 0 beyond the end of the row."""
    shift = coefficient(coefficients, step, B) * load_row(velocity, row, first, inside, BLOCK)
    a = coefficient(coefficients, step, A)
    mean = scaled_sum(a, load_row(latents, row, first, inside, BLOCK), shift, BLOCK)
    return tl.where(inside, load_row(latents_next, row, first, inside, BLOCK) - mean, 0.0)


@triton.jit
def log_prob_kernel(
    partial, latents_next, latents, velocity, coefficients, steps, numel, BLOCK: tl.constexpr
):  # fmt: skip
    """One block of a row: the sum of ((x' - m) / s)^2."""
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    step = tl.load(steps + row)
    z = residual(latents_next, latents, velocity, coefficients, step, row, first, inside, BLOCK)
    z = z * (1.0 / coefficient(coefficients, step, S))
    tl.store(partial + tl.program_id(0), tl.sum(z * z))


@triton.jit(do_not_specialize=["step", "count", "per_row"])
def log_density_kernel(
    log_prob, partial, coefficients, steps, step, count, per_row, blocks, numel,
    DENSITIES: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Some of `count` log-densities, `per_row` of each row, from their partial sums of z^2."""
    index = tl.program_id(0).to(tl.int64) * DENSITIES + tl.arange(0, DENSITIES)
    exists = index < count
    if steps is not None:
        step = tl.load(steps + index // per_row, mask=exists, other=0)
    square = sum_blocks(partial, index, exists, blocks, PARTIALS)
    log_s = tl.log(coefficient(coefficients, step, S))
    tl.store(log_prob + index, -0.5 * square / numel - log_s - HALF_LOG_TWO_PI, mask=exists)


@triton.jit
def log_prob_backward_kernel(
    out, grad, latents_next, latents, velocity, coefficients, steps, numel, BLOCK: tl.constexpr
):  # fmt: skip
    """One block of a row of grad * b / (s^2 D) (x' - m)."""
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    step = tl.load(steps + row)
    s = coefficient(coefficients, step, S)
    factor = tl.load(grad + row) * coefficient(coefficients, step, B) / (s * s * numel)
    value = factor * residual(latents_next, latents, velocity, coefficients, step, row, first, inside, BLOCK)
    store_row(out, numel, row, first, inside, value, BLOCK)


def log_densities(
    partial: Tensor, coefficients: Tensor, steps: Tensor | None, step: int, numel: int, shape: tuple[int, ...]
) -> Tensor:
    """Log-densities from sums of z^2.

    Args:
        partial: [*shape, blocks], the sums.
        coefficients: [T, 5].
        steps: [R], the step of each row; None if all rows have the same.
        step: the step of all rows if `steps` is None.
        numel: D.
        shape: [R] or [N, K].
    """
    out = partial.new_empty(shape)
    count = out.numel()
    launch(
        log_density_kernel, triton.cdiv(count, DENSITIES), out.device,
        out, partial, with_length(coefficients), steps, step, count, count // shape[0], partial.shape[-1],
        numel, DENSITIES=DENSITIES, PARTIALS=PARTIALS,
    )  # fmt: skip
    return out


def log_prob(latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor) -> Tensor:
    """See tempflow_fast/ops/reference.py; two launches."""
    num_rows, numel = latents.shape
    data = _data("log_prob", latents_next, latents, velocity, coefficients)
    if not num_rows:
        return latents.new_empty(0, dtype=torch.float32)
    blocks = blocks_of(numel, latents.dtype)
    partial = latents.new_empty(num_rows, blocks, dtype=torch.float32)
    launch(
        log_prob_kernel, num_rows * blocks, latents.device,
        partial, *data, steps, numel, BLOCK=block_size(latents.dtype),
    )  # fmt: skip
    return log_densities(partial, coefficients, steps, 0, numel, (num_rows,))


def log_prob_backward(
    grad: Tensor, latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor
) -> Tensor:
    """See tempflow_fast/ops/reference.py; one launch."""
    num_rows, numel = latents.shape
    data = _data("log_prob_backward", latents_next, latents, velocity, coefficients)
    out = velocity.new_empty(num_rows, numel)
    if num_rows:
        launch(
            log_prob_backward_kernel, num_rows * blocks_of(numel, latents.dtype), latents.device,
            out, grad, *data, steps, numel, BLOCK=block_size(latents.dtype),
        )  # fmt: skip
    return out


def _data(
    op: str, latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor
) -> tuple[Rows | Coefficients | None, ...]:
    """The arguments that log_prob and its backward share, as their kernels take them."""
    named = {"latents_next": latents_next, "latents": latents, "velocity": velocity}
    return *(rows(op, name, tensor, latents) for name, tensor in named.items()), with_length(coefficients)
