"""What the kernels share: a program's place, the rows it reads and writes, the scalars of a step, partial sums.

`rows` are (pointer, stride) as launch.py makes them, `table` is (pointer, number of steps).
"""

import triton
import triton.language as tl

DT, A, B, S, NOISE_WEIGHT = (tl.constexpr(column) for column in range(5))  # of a step table


@triton.jit
def locate(program, numel, BLOCK: tl.constexpr):
    """The row of a program, its block of the row, the block's first element (64 bits), and which elements exist."""
    blocks = tl.cdiv(numel, BLOCK)
    row, block = program // blocks, program % blocks
    first = block.to(tl.int64) * BLOCK
    left = tl.minimum(numel - first, BLOCK).to(tl.int32)
    return row.to(tl.int64), block, first, tl.arange(0, BLOCK) < left


@triton.jit
def load_row(rows, row, first, inside, BLOCK: tl.constexpr):
    """A block of a row as float32, 0 beyond its end."""
    at = rows[0] + (row * rows[1] + first) + tl.arange(0, BLOCK)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_guided(cond, uncond, scale, row, first, inside, BLOCK: tl.constexpr):
    """v_uncond + scale (v_cond - v_uncond), or v_cond where there is no other."""
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
def coefficient(table, step, COLUMN: tl.constexpr):
    """One scalar of a step, or of several, as float32; NaN for a step that the table does not have."""
    known = (step >= 0) & (step < table[1])
    return tl.load(table[0] + 5 * step + COLUMN, mask=known, other=float("nan")).to(tl.float32)


@triton.jit
def sum_blocks(partial, index, exists, blocks, CHUNK: tl.constexpr):
    """The sums over the last dimension of `partial` [*, blocks] at `index`, in an order that repeats."""
    total = tl.zeros([index.shape[0], CHUNK], tl.float32)
    for first in range(0, blocks, CHUNK):
        block = first + tl.arange(0, CHUNK)
        at = partial + index[:, None].to(tl.int64) * blocks + block[None, :]
        total += tl.load(at, mask=exists[:, None] & (block < blocks)[None, :], other=0.0)
    return tl.sum(total, axis=1)
