"""Shared by the kernels: a program's place, the rows it reads and writes, the scalars of a step, partial sums.

`rows` is (pointer, stride) and `coefficients` is (pointer, number of steps), both made by launch.py.
"""

import triton
import triton.language as tl

# The columns of `coefficients` [T, 5], in the order of StepTable.coefficients (tempflow_fast/ops/schedule.py).
DT, A, B, S, NOISE_WEIGHT = (tl.constexpr(column) for column in range(5))
NUM_COLUMNS = tl.constexpr(5)


@triton.jit
def locate(program, numel, BLOCK: tl.constexpr):
    """A program's row, its block in the row, the block's first element (64 bits), and which elements exist."""
    blocks = tl.cdiv(numel, BLOCK)
    row, block = program // blocks, program % blocks
    first = block.to(tl.int64) * BLOCK
    left = tl.minimum(numel - first, BLOCK).to(tl.int32)
    return row.to(tl.int64), block, first, tl.arange(0, BLOCK) < left


@triton.jit
def load_row(rows, row, first, inside, BLOCK: tl.constexpr):
    """A block of a row as float32; 0 beyond the end of the row."""
    at = rows[0] + (row * rows[1] + first) + tl.arange(0, BLOCK)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_guided(cond, uncond, scale, row, first, inside, BLOCK: tl.constexpr):
    """v_uncond + scale (v_cond - v_uncond), or v_cond if there is no v_uncond."""
    v = load_row(cond, row, first, inside, BLOCK)
    if uncond is not None:
        u = load_row(uncond, row, first, inside, BLOCK)
        v = tl.fma(tl.full([BLOCK], scale, tl.float32), v - u, u)
    return v


@triton.jit
def scaled_sum(scale, x, y, BLOCK: tl.constexpr):
    """scale x + y in one rounding."""
    return tl.fma(tl.full([BLOCK], scale, tl.float32), x, y)


@triton.jit
def store_row(out, numel, row, first, inside, value, BLOCK: tl.constexpr):
    """A block of a row of a contiguous result, in its dtype."""
    at = out + (row * numel + first) + tl.arange(0, BLOCK)
    tl.store(at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def coefficient(coefficients, step, COLUMN: tl.constexpr):
    """One scalar of one or several steps, as float32; NaN for a step that `coefficients` lacks."""
    known = (step >= 0) & (step < coefficients[1])
    at = coefficients[0] + NUM_COLUMNS * step + COLUMN
    return tl.load(at, mask=known, other=float("nan")).to(tl.float32)


@triton.jit
def sum_blocks(partial, index, exists, blocks, PARTIALS: tl.constexpr):
    """The sums over the last dimension of `partial` [*, blocks] at `index`, in a fixed order."""
    total = tl.zeros([index.shape[0], PARTIALS], tl.float32)
    for first in range(0, blocks, PARTIALS):
        block = first + tl.arange(0, PARTIALS)
        at = partial + index[:, None].to(tl.int64) * blocks + block[None, :]
        total += tl.load(at, mask=exists[:, None] & (block < blocks)[None, :], other=0.0)
    return tl.sum(total, axis=1)
