"""policy_loss in two launches: sums of products per block, then the statistics and the gradient.

The gradient of a row needs its log-ratios, and these need a sum over the whole row, so the data are read twice. The
second launch takes the rows backwards, because the last rows of the first launch are still in the cache. If a policy
has not changed, as in the first update on a rollout, all ratios are 1: the first launch writes the gradient for ratios
of 1, and the second keeps it in rows where nothing has changed. The data of those rows are read once.

In the kernels `v, u, old_rows, ref, x_rows` are the rows of velocity, velocity_uncond, velocity_old, velocity_ref and
latents; `branches` is (pointer, distance of rows, distance of branches), `counts` is (R, K, D), `clip` is
(c, log(1 - c), log(1 + c)).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block_size, blocks_of, launch, rows, with_length
from .rows import NOISE_WEIGHT, A, B, S, coefficient, load_guided, load_row, locate, scaled_sum, store_row, sum_blocks

GROUP = 4  # branches, and so accesses, that a program has in flight; 8 need so many registers that half as many fit
SUMS_GROUP = 2  # the same in the first launch, which also keeps a gradient: 4 would take up to 114 registers
PARTIALS = 32  # partial sums of each branch that are read at once
PAIRS = 16  # (row, branch) pairs that the statistics take at once: with few, they need no more registers than the rest


@triton.jit
def policy_velocity(v, u, scale, row, first, inside, BLOCK: tl.constexpr):
    """The velocity, guided and rounded: bit for bit the velocity_old that the same policy stored."""
    return load_guided(v, u, scale, row, first, inside, BLOCK).to(v[0].dtype.element_ty).to(tl.float32)


@triton.jit
def load_branches(branches, row, k, exists, first, inside, BLOCK: tl.constexpr):
    """The block of several branches, [GROUP, BLOCK] of float32."""
    at = branches[0] + (row * branches[1] + first)
    at = at + k[:, None].to(tl.int64) * branches[2] + tl.arange(0, BLOCK)[None, :]
    return tl.load(at, mask=exists[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def ratio_unit(coefficients, step):
    """The divisor of log r: s^2, or s of the normalised ratio (see StepTable.with_ratio_norm)."""
    s = coefficient(coefficients, step, S)
    return tl.where(coefficient(coefficients, step, NOISE_WEIGHT) < 0, s, s * s)


@triton.jit
def branch_factor(coefficients, step, counts):
    """The factor of x' - m in the gradient, up to the derivative of a branch's surrogate."""
    weight = tl.abs(coefficient(coefficients, step, NOISE_WEIGHT)) / counts[0] / counts[1]
    return weight * coefficient(coefficients, step, B) / (ratio_unit(coefficients, step) * counts[2])


@triton.jit
def kl_factor(beta, coefficients, step, counts):
    """The factor of v - v_ref in the gradient."""
    ratio = coefficient(coefficients, step, B) / coefficient(coefficients, step, S)
    return beta * ratio * ratio / counts[2] / counts[0]


@triton.jit
def loss_sums_kernel(
    products, sum_squares_ref, changes, gradient, advantages, beta, old_rows,
    v, u, scale, ref, x_rows, branches, coefficients, steps, counts,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One block of a row: the sums of shift (x' + centre) behind log r, the sum of (v - v_ref)^2, the number of values
    that show a change in the policy, and the gradient if that number is 0."""
    numel, num_branches = counts[2], counts[1]
    row, block, first, inside = locate(tl.program_id(0), numel, BLOCK)
    step, blocks = tl.load(steps + row), tl.cdiv(numel, BLOCK)
    b = coefficient(coefficients, step, B)
    velocity = policy_velocity(v, u, scale, row, first, inside, BLOCK)
    old = load_row(old_rows, row, first, inside, BLOCK)
    x = load_row(x_rows, row, first, inside, BLOCK)
    shift = b * (velocity - old)
    half = tl.where(coefficient(coefficients, step, NOISE_WEIGHT) < 0, 0.0, -0.5)
    centre = scaled_sum(half, shift, -scaled_sum(coefficient(coefficients, step, A), x, b * old, BLOCK), BLOCK)
    changed = tl.sum((shift != 0).to(tl.int32))
    same = (changed == 0) & (gradient is not None)
    # b (v - v_old), or if nothing has changed the gradient for ratios of 1: one of the two is 0.
    kept, factor = shift, branch_factor(coefficients, step, counts)
    if ref is not None:
        difference = velocity - load_row(ref, row, first, inside, BLOCK)
        tl.store(sum_squares_ref + row * blocks + block, tl.sum(difference * difference))
        kept = tl.where(same, kl_factor(beta, coefficients, step, counts) * difference, kept)
    for k0 in range(0, num_branches, GROUP):
        k = k0 + tl.arange(0, GROUP)
        exists = k < num_branches
        residual = load_branches(branches, row, k, exists, first, inside, BLOCK) + centre[None, :]
        if same:  # then centre is -m, and the derivative at a ratio of 1 is -A
            sums = tl.sum(0.0 * residual, axis=1)
            advantage = tl.load(advantages + row * num_branches + k, mask=exists, other=0.0)
            kept += tl.sum((factor * -advantage)[:, None] * residual, axis=0)
        else:
            sums = tl.sum(kept[None, :] * residual, axis=1)
        tl.store(products + (row * num_branches + k) * blocks + block, sums, mask=exists)
        changed += tl.sum((sums != 0).to(tl.int32))  # a NaN among the samples counts, too
    tl.store(changes + row * blocks + block, changed.to(tl.float32))
    if gradient is not None:  # noqa: SIM102  decided by the compiler; the next line is decided at run time
        if changed == 0:
            store_row(gradient, numel, row, first, inside, kept, BLOCK)


@triton.jit
def surrogate(log_ratio, advantage, clip):
    """max(-A r, -A clip(r)) and its derivative with respect to log r.

    Clipping compares log r: near 1, float32 values of r are 1.2e-7 apart, which is too coarse for small clip ranges.
    """
    above, below = log_ratio > clip[2], log_ratio < clip[1]
    flat = (above & (advantage > 0)) | (below & (advantage < 0))
    bound = tl.where(above, 1.0 + clip[0], 1.0 - clip[0])
    value = -advantage * tl.where(flat, bound, tl.exp(log_ratio))
    return value, tl.where(flat, 0.0, value)


@triton.jit
def statistics(
    log_ratio, loss, clip_fraction, kl, products, sum_squares_ref, advantages, clip, beta, coefficients, steps, counts,
    BLOCK: tl.constexpr, PARTIALS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """All results except the gradient. One program adds the partial sums of all rows in a fixed order."""
    num_rows, num_branches, numel = counts
    blocks, num_pairs = tl.cdiv(numel, BLOCK), num_rows * num_branches
    value_sum, clipped = tl.zeros([PAIRS], tl.float32), tl.zeros([PAIRS], tl.float32)
    for first in range(0, num_pairs, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        exists = pair < num_pairs
        step = tl.load(steps + pair // num_branches, mask=exists, other=0)
        value = sum_blocks(products, pair, exists, blocks, PARTIALS) / (ratio_unit(coefficients, step) * numel)
        tl.store(log_ratio + pair, value, mask=exists)
        share = surrogate(value, tl.load(advantages + pair, mask=exists, other=0.0), clip)[0]
        value_sum += tl.where(exists, tl.abs(coefficient(coefficients, step, NOISE_WEIGHT)) * share, 0.0)
        clipped += tl.where(exists & ((value > clip[2]) | (value < clip[1])), 1.0, 0.0)
    row_kl = tl.zeros([PAIRS], tl.float32)
    if sum_squares_ref is not None:
        for first in range(0, num_rows, PAIRS):
            row = first + tl.arange(0, PAIRS)
            exists = row < num_rows
            step = tl.load(steps + row, mask=exists, other=0)
            ratio = coefficient(coefficients, step, B) / coefficient(coefficients, step, S)
            square = sum_blocks(sum_squares_ref, row, exists, blocks, PARTIALS)
            row_kl += tl.where(exists, ratio * ratio * square / (2.0 * numel), 0.0)
    mean_kl = tl.sum(row_kl) / num_rows
    tl.store(kl, mean_kl)
    tl.store(loss, tl.sum(value_sum) / num_pairs + beta * mean_kl)
    tl.store(clip_fraction, tl.sum(clipped) / num_pairs)


@triton.jit
def gradient_block(
    gradient, row, first, inside, products, advantages, clip, beta, old_rows,
    v, u, scale, ref, x_rows, branches, coefficients, steps, counts,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """One block of a row: sum over k of d loss / d log r_k times b / (s^2 D) (x'_k - m), and the gradient of the KL.

    Of the normalised ratio it is b / (s D) (x'_k - m_old)."""
    num_branches, numel = counts[1], counts[2]
    step, blocks = tl.load(steps + row), tl.cdiv(numel, BLOCK)
    velocity = policy_velocity(v, u, scale, row, first, inside, BLOCK)
    value = tl.zeros([BLOCK], tl.float32)
    if ref is not None:
        difference = velocity - load_row(ref, row, first, inside, BLOCK)
        value = kl_factor(beta, coefficients, step, counts) * difference
    if coefficient(coefficients, step, NOISE_WEIGHT) < 0:
        velocity = load_row(old_rows, row, first, inside, BLOCK)
    x = load_row(x_rows, row, first, inside, BLOCK)
    mean = scaled_sum(coefficient(coefficients, step, A), x, coefficient(coefficients, step, B) * velocity, BLOCK)
    unit = ratio_unit(coefficients, step)
    factor = branch_factor(coefficients, step, counts)
    for k0 in range(0, num_branches, GROUP):
        k = k0 + tl.arange(0, GROUP)
        exists, pair = k < num_branches, row * num_branches + k
        log_ratio = sum_blocks(products, pair, exists, blocks, PARTIALS) / (unit * numel)
        derivative = surrogate(log_ratio, tl.load(advantages + pair, mask=exists, other=0.0), clip)[1]
        # Read last: if the branches were in registers during the sums, half as many programs would be in flight.
        samples = load_branches(branches, row, k, exists, first, inside, BLOCK)
        value += tl.sum((factor * derivative)[:, None] * (samples - mean[None, :]), axis=0)
    store_row(gradient, numel, row, first, inside, value, BLOCK)


@triton.jit
def loss_gradient_kernel(
    gradient, log_ratio, loss, clip_fraction, kl, products, sum_squares_ref, changes, advantages, clip, beta, old_rows,
    v, u, scale, ref, x_rows, branches, coefficients, steps, counts,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, PARTIALS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """The first program computes the statistics, every other program a block of the gradient."""
    program = tl.program_id(0)
    if program == 0:
        statistics(
            log_ratio, loss, clip_fraction, kl, products, sum_squares_ref, advantages, clip, beta,
            coefficients, steps, counts, BLOCK, PARTIALS, PAIRS,
        )  # fmt: skip
    else:
        from_end, _, first, inside = locate(program - 1, counts[2], BLOCK)
        row, one = counts[0] - 1 - from_end, tl.arange(0, 1)
        if tl.sum(sum_blocks(changes, row + one, one == 0, tl.cdiv(counts[2], BLOCK), PARTIALS)) != 0:
            gradient_block(
                gradient, row, first, inside, products, advantages, clip, beta, old_rows,
                v, u, scale, ref, x_rows, branches, coefficients, steps, counts, BLOCK, GROUP, PARTIALS,
            )  # fmt: skip


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
    """See tempflow_fast/ops/reference.py; two launches, the second of a single program if no gradient is wanted."""
    num_rows, num_branches, numel = branches.shape
    shapes = [(), (num_rows, num_branches), (), (), (num_rows, numel) if with_gradient else (0,)]
    loss, log_ratio, clip_fraction, kl, gradient = (velocity.new_empty(s, dtype=torch.float32) for s in shapes)
    if not num_rows:
        return loss.zero_(), log_ratio, clip_fraction.zero_(), kl.zero_(), gradient
    named = {"velocity": velocity, "velocity_uncond": velocity_uncond, "velocity_ref": velocity_ref, "latents": latents}
    v, u, ref, x = (rows("policy_loss", name, tensor, velocity) for name, tensor in named.items())
    old = rows("policy_loss", "velocity_old", velocity_old, velocity)
    blocks = blocks_of(numel, velocity.dtype)
    products = velocity.new_empty(num_rows, num_branches, blocks, dtype=torch.float32)
    changes = velocity.new_empty(num_rows, blocks, dtype=torch.float32)
    sum_squares_ref = None if ref is None else torch.empty_like(changes)
    counts = (num_rows, num_branches, numel)
    data = (v, u, guidance_scale, ref, x, _branch_rows(branches, velocity), with_length(coefficients), steps, counts)
    block, most = block_size(velocity.dtype), triton.next_power_of_2(num_branches)
    launch(
        loss_sums_kernel, num_rows * blocks, velocity.device,
        products, sum_squares_ref, changes, gradient if with_gradient else None, advantages, beta, old, *data,
        BLOCK=block, GROUP=min(SUMS_GROUP, most),
    )  # fmt: skip
    clip = (clip_range, math.log1p(-clip_range), math.log1p(clip_range))
    launch(
        loss_gradient_kernel, 1 + (num_rows * blocks if with_gradient else 0), velocity.device,
        gradient, log_ratio, loss, clip_fraction, kl, products, sum_squares_ref, changes, advantages, clip, beta, old,
        *data,
        BLOCK=block, GROUP=min(GROUP, most), PARTIALS=PARTIALS, PAIRS=PAIRS,
    )  # fmt: skip
    return loss, log_ratio, clip_fraction, kl, gradient


def _branch_rows(branches: Tensor, velocity: Tensor) -> tuple[Tensor, int, int]:
    rows("policy_loss", "branches", branches[:, 0], velocity)
    return branches, branches.stride(0), branches.stride(1)
