"""What the kernels share: a program's place, the rows it reads, the scalars of a step, sums of partial sums."""

import triton
import triton.language as tl


@triton.jit
def locate(program, numel, BLOCK: tl.constexpr):
    """The row of a program, its block of the row, the block's first element (64 bits), and which elements exist."""
    blocks = tl.cdiv(numel, BLOCK)
    row, block = program // blocks, program % blocks
    first = block.to(tl.int64) * BLOCK
    left = tl.minimum(numel - first, BLOCK).to(tl.int32)
    return row.to(tl.int64), block, first, tl.arange(0, BLOCK) < left


@triton.jit
def load_row(pointer, stride, row, first, inside, BLOCK: tl.constexpr):
    """A block of a row as float32, 0 beyond its end."""
    at = pointer + row * stride + first + tl.arange(0, BLOCK)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_guided(cond, cond_stride, uncond, uncond_stride, scale, row, first, inside, BLOCK: tl.constexpr):
    """v_uncond + scale (v_cond - v_uncond), or v_cond where there is no other."""
    v = load_row(cond, cond_stride, row, first, inside, BLOCK)
    if uncond is not None:
        u = load_row(uncond, uncond_stride, row, first, inside, BLOCK)
        v = tl.fma(tl.full([BLOCK], scale, tl.float32), v - u, u)
    return v


@triton.jit
def step_row(table, num_steps, step):
    """(dt, a, b, s, noise_weight) of one step or several, as float32; NaN for a step that the table does not have."""
    known = (step >= 0) & (step < num_steps)
    at = table + 5 * step
    dt = tl.load(at, mask=known, other=float("nan")).to(tl.float32)
    a = tl.load(at + 1, mask=known, other=float("nan")).to(tl.float32)
    b = tl.load(at + 2, mask=known, other=float("nan")).to(tl.float32)
    s = tl.load(at + 3, mask=known, other=float("nan")).to(tl.float32)
    weight = tl.load(at + 4, mask=known, other=float("nan")).to(tl.float32)
    return dt, a, b, s, weight


@triton.jit
def sum_blocks(partial, index, exists, blocks, CHUNK: tl.constexpr):
    """The sums over the last dimension of `partial` [*, blocks] at `index` [M], in an order that depends on M alone."""
    total = tl.zeros([index.shape[0], CHUNK], tl.float32)
    for first in range(0, blocks, CHUNK):
        block = first + tl.arange(0, CHUNK)
        at = partial + index[:, None] * blocks + block[None, :]
        total += tl.load(at, mask=exists[:, None] & (block < blocks)[None, :], other=0.0)
    return tl.sum(total, axis=1)
