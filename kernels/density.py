"""Log-densities: sums of z^2 per block, then their sum per row; and the gradient of log_prob."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks_of, launch, rows, tile
from .rows import load_row, locate, step_row, sum_blocks

SUMS, CHUNK = 32, 64  # log-densities of a finishing program, and partial sums of each that it reads at once


@triton.jit
def residual(
    child, child_stride, x, x_stride, v, v_stride, a, b, row, first, inside, BLOCK: tl.constexpr
):  # fmt: skip
    """x' - a x - b v."""
    mean = tl.fma(
        tl.full([BLOCK], a, tl.float32),
        load_row(x, x_stride, row, first, inside, BLOCK),
        b * load_row(v, v_stride, row, first, inside, BLOCK),
    )
    return tl.where(inside, load_row(child, child_stride, row, first, inside, BLOCK) - mean, 0.0)


@triton.jit(do_not_specialize=["num_steps"])
def squares_kernel(
    partial, child, child_stride, x, x_stride, v, v_stride, table, num_steps, steps, numel,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """One block of a row: the sum of ((x' - m) / s)^2."""
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    _, a, b, s, _ = step_row(table, num_steps, tl.load(steps + row))
    z = residual(child, child_stride, x, x_stride, v, v_stride, a, b, row, first, inside, BLOCK) * (1.0 / s)
    tl.store(partial + tl.program_id(0), tl.sum(z * z))


@triton.jit(do_not_specialize=["num_steps", "step", "count", "rows_per_step"])
def finish_kernel(
    log_prob, partial, table, num_steps, steps, step, count, per_row, blocks, numel,
    SUMS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Some of `count` log-densities, `per_row` of a row, from their partial sums of z^2."""
    index = tl.program_id(0).to(tl.int64) * SUMS + tl.arange(0, SUMS)
    exists = index < count
    if steps is not None:
        step = tl.load(steps + index // per_row, mask=exists, other=0)
    _, _, _, s, _ = step_row(table, num_steps, step)
    square = sum_blocks(partial, index, exists, blocks, CHUNK)
    tl.store(log_prob + index, -0.5 * square / numel - tl.log(s) - 0.91893853320467274178, mask=exists)


@triton.jit(do_not_specialize=["num_steps"])
def backward_kernel(
    out, grad, child, child_stride, x, x_stride, v, v_stride, table, num_steps, steps, numel,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """One block of a row of grad * b / (s^2 D) (x' - m)."""
    row, _, first, inside = locate(tl.program_id(0), numel, BLOCK)
    _, a, b, s, _ = step_row(table, num_steps, tl.load(steps + row))
    factor = tl.load(grad + row) * b / (s * s * numel)
    value = factor * residual(child, child_stride, x, x_stride, v, v_stride, a, b, row, first, inside, BLOCK)
    tl.store(out + row * numel + first + tl.arange(0, BLOCK), value.to(out.dtype.element_ty), mask=inside)


def finish(
    partial: Tensor, coefficients: Tensor, steps: Tensor | None, step: int, numel: int, shape: tuple[int, ...]
) -> Tensor:
    """Log-densities of `shape` ([R] or [N, K]) from the sums of z^2 [*shape, blocks]; one step for all, or one a row."""
    out = partial.new_empty(shape)
    count, per_row, num_steps = out.numel(), out.numel() // shape[0], coefficients.shape[0]
    launch(
        finish_kernel, triton.cdiv(count, SUMS),
        out, partial, coefficients, num_steps, steps, step, count, per_row, partial.shape[-1], numel,
        SUMS=SUMS, CHUNK=CHUNK,
    )  # fmt: skip
    return out


def log_prob(latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor) -> Tensor:
    """See tempflow_fast/reference.py; two launches."""
    num_rows, numel = latents.shape
    child, x, v = _rows("log_prob", latents_next, latents, velocity)
    blocks = blocks_of(numel, latents.dtype)
    if not num_rows:
        return latents.new_empty(0, dtype=torch.float32)
    partial = latents.new_empty(num_rows, blocks, dtype=torch.float32)
    launch(
        squares_kernel, num_rows * blocks,
        partial, *child, *x, *v, coefficients, coefficients.shape[0], steps, numel, **tile(latents.dtype),
    )  # fmt: skip
    return finish(partial, coefficients, steps, 0, numel, (num_rows,))


def log_prob_backward(
    grad: Tensor, latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor
) -> Tensor:
    """See tempflow_fast/reference.py; one launch."""
    num_rows, numel = latents.shape
    child, x, v = _rows("log_prob_backward", latents_next, latents, velocity)
    out = velocity.new_empty(num_rows, numel)
    if num_rows:
        launch(
            backward_kernel, num_rows * blocks_of(numel, latents.dtype),
            out, grad, *child, *x, *v, coefficients, coefficients.shape[0], steps, numel, **tile(latents.dtype),
        )  # fmt: skip
    return out


def _rows(op: str, latents_next: Tensor, latents: Tensor, velocity: Tensor) -> list[tuple[Tensor | None, int]]:
    named = {"latents_next": latents_next, "latents": latents, "velocity": velocity}
    return [rows(op, name, tensor, latents) for name, tensor in named.items()]
