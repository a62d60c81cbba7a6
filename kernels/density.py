"""Log-densities: sums of z^2 per block, then their sum per row; and the gradient of log_prob."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Rows, block_size, blocks_of, launch, rows
from .rows import A, B, S, coefficient, load_row, locate, scaled_sum, store_row, sum_blocks

SUMS, CHUNK = 32, 64  # log-densities of a finishing program, and partial sums of each that it reads at once


@triton.jit
def residual(child, x, v, table, step, row, first, inside, BLOCK: tl.constexpr):
    """x' - a x - b v, 0 beyond the end of the row."""
    shift = coefficient(table, step, B) * load_row(v, row, first, inside, BLOCK)
    mean = scaled_sum(coefficient(table, step, A), load_row(x, row, first, inside, BLOCK), shift, BLOCK)
    return tl.where(inside, load_row(child, row, first, inside, BLOCK) - mean, 0.0)


@triton.jit
def squares_kernel(partial, child, x, v, table, steps, numel, BLOCK: tl.constexpr):
    """One block of a row: the sum of ((x' - m) / s)^2."""
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    step = tl.load(steps + row)
    z = residual(child, x, v, table, step, row, first, inside, BLOCK) * (1.0 / coefficient(table, step, S))
    tl.store(partial + tl.program_id(0), tl.sum(z * z))


@triton.jit(do_not_specialize=["step", "count", "per_row"])
def finish_kernel(
    log_prob, partial, table, steps, step, count, per_row, blocks, numel, SUMS: tl.constexpr, CHUNK: tl.constexpr
):
    """Some of `count` log-densities, `per_row` of a row, from their partial sums of z^2."""
    index = tl.program_id(0).to(tl.int64) * SUMS + tl.arange(0, SUMS)
    exists = index < count
    if steps is not None:
        step = tl.load(steps + index // per_row, mask=exists, other=0)
    square = sum_blocks(partial, index, exists, blocks, CHUNK)
    log_s = tl.log(coefficient(table, step, S))
    tl.store(log_prob + index, -0.5 * square / numel - log_s - 0.91893853320467274178, mask=exists)


@triton.jit
def backward_kernel(out, grad, child, x, v, table, steps, numel, BLOCK: tl.constexpr):
    """One block of a row of grad * b / (s^2 D) (x' - m)."""
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    step = tl.load(steps + row)
    s = coefficient(table, step, S)
    factor = tl.load(grad + row) * coefficient(table, step, B) / (s * s * numel)
    value = factor * residual(child, x, v, table, step, row, first, inside, BLOCK)
    store_row(out, numel, row, first, inside, value, BLOCK)


def finish(
    partial: Tensor, coefficients: Tensor, steps: Tensor | None, step: int, numel: int, shape: tuple[int, ...]
) -> Tensor:
    """Log-densities of `shape` ([R] or [N, K]) from sums of z^2 [*shape, blocks]; of one step, or of `steps` [R]."""
    out = partial.new_empty(shape)
    count = out.numel()
    launch(
        finish_kernel, triton.cdiv(count, SUMS), out.device,
        out, partial, (coefficients, coefficients.shape[0]), steps, step, count, count // shape[0], partial.shape[-1],
        numel, SUMS=SUMS, CHUNK=CHUNK,
    )  # fmt: skip
    return out


def log_prob(latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor) -> Tensor:
    """See tempflow_fast/ops/reference.py; two launches."""
    num_rows, numel = latents.shape
    data = _rows("log_prob", latents_next, latents, velocity)
    if not num_rows:
        return latents.new_empty(0, dtype=torch.float32)
    blocks, table = blocks_of(numel, latents.dtype), (coefficients, coefficients.shape[0])
    partial = latents.new_empty(num_rows, blocks, dtype=torch.float32)
    launch(
        squares_kernel, num_rows * blocks, latents.device,
        partial, *data, table, steps, numel, BLOCK=block_size(latents.dtype),
    )  # fmt: skip
    return finish(partial, coefficients, steps, 0, numel, (num_rows,))


def log_prob_backward(
    grad: Tensor, latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor
) -> Tensor:
    """See tempflow_fast/ops/reference.py; one launch."""
    num_rows, numel = latents.shape
    data = _rows("log_prob_backward", latents_next, latents, velocity)
    out = velocity.new_empty(num_rows, numel)
    if num_rows:
        launch(
            backward_kernel, num_rows * blocks_of(numel, latents.dtype), latents.device,
            out, grad, *data, (coefficients, coefficients.shape[0]), steps, numel, BLOCK=block_size(latents.dtype),
        )  # fmt: skip
    return out


def _rows(op: str, latents_next: Tensor, latents: Tensor, velocity: Tensor) -> list[Rows | None]:
    named = {"latents_next": latents_next, "latents": latents, "velocity": velocity}
    return [rows(op, name, tensor, latents) for name, tensor in named.items()]
