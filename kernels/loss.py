"""policy_loss in two launches: sums of products per block, then statistics and the gradient.

The gradient of a row needs its log-ratios, and those a sum over the whole row, so the data is read twice; the second
launch takes the rows backwards, since the last of the first are still in the cache. Where a policy has not changed, as
in the first update on a rollout, all ratios are 1: the first launch writes the gradient that belongs to them, and the
second leaves it alone in rows where nothing has changed, whose data are so read once.

In the kernels `v, u, ref, x` are rows, `branches` is (pointer, distance of rows, distance of branches), `counts` is
(rows, branches, elements), `clip` is (c, log(1 - c), log(1 + c)).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block_size, blocks_of, launch, rows
from .rows import NOISE_WEIGHT, A, B, S, coefficient, load_guided, load_row, locate, scaled_sum, store_row, sum_blocks

GROUP = 4  # branches, and so accesses, that a program has in flight; with 8, its registers halve the programs in flight
SUMS_GROUP = 2  # the same in the first launch, which also keeps a gradient: 4 would take up to 114 registers
CHUNK = 32  # partial sums of each branch that are read at once
PAIRS = 16  # log-ratios that the program of the statistics takes at once: few, so that it needs no more registers


@triton.jit
def policy_velocity(v, u, scale, row, first, inside, BLOCK: tl.constexpr):
    """Guided and rounded as `guided_velocity` stores it, so that an unchanged policy is equal to it bit for bit."""
    return load_guided(v, u, scale, row, first, inside, BLOCK).to(v[0].dtype.element_ty).to(tl.float32)


@triton.jit
def load_branches(branches, row, k, exists, first, inside, BLOCK: tl.constexpr):
    """The block of several branches, [GROUP, BLOCK] of float32."""
    at = branches[0] + (row * branches[1] + first)
    at = at + k[:, None].to(tl.int64) * branches[2] + tl.arange(0, BLOCK)[None, :]
    return tl.load(at, mask=exists[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def branch_factor(table, step, counts):
    """Of x' - m in the gradient, times the derivative of a branch's surrogate."""
    s = coefficient(table, step, S)
    weight = coefficient(table, step, NOISE_WEIGHT) / counts[0] / counts[1]
    return weight * coefficient(table, step, B) / (s * s * counts[2])


@triton.jit
def drift_factor(beta, table, step, counts):
    """Of v - v_ref in the gradient."""
    slope = coefficient(table, step, B) / coefficient(table, step, S)
    return beta * slope * slope / counts[2] / counts[0]


@triton.jit
def products_kernel(
    products, drifts, changes, gradient, advantages, beta, old_rows,
    v, u, scale, ref, x_rows, branches, table, steps, counts,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One block of a row: half of the sum that is log r of each branch, the sum of (v - v_ref)^2, how many numbers an
    unchanged policy would not have made, and if there are none, the gradient."""
    numel, num_branches = counts[2], counts[1]
    row, block, first, inside = locate(tl.program_id(0), numel, BLOCK)
    step, blocks = tl.load(steps + row), tl.cdiv(numel, BLOCK)
    b = coefficient(table, step, B)
    velocity = policy_velocity(v, u, scale, row, first, inside, BLOCK)
    old = load_row(old_rows, row, first, inside, BLOCK)
    x = load_row(x_rows, row, first, inside, BLOCK)
    shift = b * (velocity - old)
    centre = scaled_sum(-0.5, shift, -scaled_sum(coefficient(table, step, A), x, b * old, BLOCK), BLOCK)
    changed = tl.sum((shift != 0).to(tl.int32))
    same = (changed == 0) & (gradient is not None)
    # b (v - v_old), or where nothing has changed the gradient that belongs to ratios of 1: one of the two is 0.
    kept, factor = shift, branch_factor(table, step, counts)
    if ref is not None:
        drift = velocity - load_row(ref, row, first, inside, BLOCK)
        tl.store(drifts + row * blocks + block, tl.sum(drift * drift))
        kept = tl.where(same, drift_factor(beta, table, step, counts) * drift, kept)
    for k0 in range(0, num_branches, GROUP):
        k = k0 + tl.arange(0, GROUP)
        exists = k < num_branches
        residual = load_branches(branches, row, k, exists, first, inside, BLOCK) + centre[None, :]
        if same:  # centre is then -m, and the derivative at a ratio of 1 is -A
            sums = tl.sum(0.0 * residual, axis=1)
            advantage = tl.load(advantages + row * num_branches + k, mask=exists, other=0.0)
            kept += tl.sum((factor * -advantage)[:, None] * residual, axis=0)
        else:
            sums = tl.sum(kept[None, :] * residual, axis=1)
        tl.store(products + (row * num_branches + k) * blocks + block, sums, mask=exists)
        changed += tl.sum((sums != 0).to(tl.int32))  # by a NaN among the samples
    tl.store(changes + row * blocks + block, changed.to(tl.float32))
    if gradient is not None:  # noqa: SIM102  decided when it is compiled, what follows when it runs
        if changed == 0:
            store_row(gradient, numel, row, first, inside, kept, BLOCK)


@triton.jit
def surrogate(log_ratio, advantage, clip):
    """max(-A r, -A clip(r)) and its derivative with respect to log r.

    Decided on log r: r itself has a grain of 1.2e-7 beside 1, as large as clip ranges care about.
    """
    above, below = log_ratio > clip[2], log_ratio < clip[1]
    flat = (above & (advantage > 0)) | (below & (advantage < 0))
    bound = tl.where(above, 1.0 + clip[0], 1.0 - clip[0])
    value = -advantage * tl.where(flat, bound, tl.exp(log_ratio))
    return value, tl.where(flat, 0.0, value)


@triton.jit
def statistics(
    log_ratio, loss, clip_fraction, kl, products, drifts, advantages, clip, beta, table, steps, counts,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """All results but the gradient, by one program: it adds the partial sums of all rows, in a fixed order."""
    num_rows, num_branches, numel = counts
    blocks, num_pairs = tl.cdiv(numel, BLOCK), num_rows * num_branches
    objective, outside = tl.zeros([PAIRS], tl.float32), tl.zeros([PAIRS], tl.float32)
    for first in range(0, num_pairs, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        exists = pair < num_pairs
        step = tl.load(steps + pair // num_branches, mask=exists, other=0)
        s = coefficient(table, step, S)
        value = sum_blocks(products, pair, exists, blocks, CHUNK) / (s * s * numel)
        tl.store(log_ratio + pair, value, mask=exists)
        share = surrogate(value, tl.load(advantages + pair, mask=exists, other=0.0), clip)[0]
        objective += tl.where(exists, coefficient(table, step, NOISE_WEIGHT) * share, 0.0)
        outside += tl.where(exists & ((value > clip[2]) | (value < clip[1])), 1.0, 0.0)
    divergence = tl.zeros([PAIRS], tl.float32)
    if drifts is not None:
        for first in range(0, num_rows, PAIRS):
            row = first + tl.arange(0, PAIRS)
            exists = row < num_rows
            step = tl.load(steps + row, mask=exists, other=0)
            slope = coefficient(table, step, B) / coefficient(table, step, S)
            square = sum_blocks(drifts, row, exists, blocks, CHUNK)
            divergence += tl.where(exists, slope * slope * square / (2.0 * numel), 0.0)
    mean_divergence = tl.sum(divergence) / num_rows
    tl.store(kl, mean_divergence)
    tl.store(loss, tl.sum(objective) / num_pairs + beta * mean_divergence)
    tl.store(clip_fraction, tl.sum(outside) / num_pairs)


@triton.jit
def gradient_block(
    gradient, row, first, inside, products, advantages, clip, beta, v, u, scale, ref, x_rows, branches, table, steps,
    counts, BLOCK: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One block of a row: sum over k of d loss / d log r_k times b / (s^2 D) (x'_k - m), and the share of the KL."""
    num_branches, numel = counts[1], counts[2]
    step, blocks = tl.load(steps + row), tl.cdiv(numel, BLOCK)
    b, s = coefficient(table, step, B), coefficient(table, step, S)
    velocity = policy_velocity(v, u, scale, row, first, inside, BLOCK)
    x = load_row(x_rows, row, first, inside, BLOCK)
    mean = scaled_sum(coefficient(table, step, A), x, b * velocity, BLOCK)
    value = tl.zeros([BLOCK], tl.float32)
    if ref is not None:
        drift = velocity - load_row(ref, row, first, inside, BLOCK)
        value = drift_factor(beta, table, step, counts) * drift
    factor = branch_factor(table, step, counts)
    for k0 in range(0, num_branches, GROUP):
        k = k0 + tl.arange(0, GROUP)
        exists, pair = k < num_branches, row * num_branches + k
        log_ratio = sum_blocks(products, pair, exists, blocks, CHUNK) / (s * s * numel)
        slope = surrogate(log_ratio, tl.load(advantages + pair, mask=exists, other=0.0), clip)[1]
        # Read last: with the branches in registers while the sums are made, half as many programs would be in flight.
        child = load_branches(branches, row, k, exists, first, inside, BLOCK)
        value += tl.sum((factor * slope)[:, None] * (child - mean[None, :]), axis=0)
    store_row(gradient, numel, row, first, inside, value, BLOCK)


@triton.jit
def loss_kernel(
    gradient, log_ratio, loss, clip_fraction, kl, products, drifts, changes, advantages, clip, beta,
    v, u, scale, ref, x, branches, table, steps, counts,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """The first program makes the statistics, every other one a block of the gradient."""
    program = tl.program_id(0)
    if program == 0:
        statistics(
            log_ratio, loss, clip_fraction, kl, products, drifts, advantages, clip, beta, table, steps, counts,
            BLOCK, CHUNK, PAIRS,
        )  # fmt: skip
    else:
        from_end, _, first, inside = locate(program - 1, counts[2], BLOCK)
        row, one = counts[0] - 1 - from_end, tl.arange(0, 1)
        if tl.sum(sum_blocks(changes, row + one, one == 0, tl.cdiv(counts[2], BLOCK), CHUNK)) != 0:
            gradient_block(
                gradient, row, first, inside, products, advantages, clip, beta, v, u, scale, ref, x, branches, table,
                steps, counts, BLOCK, GROUP, CHUNK,
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
    """See tempflow_fast/ops/reference.py; two launches, the second of one program if there is no gradient to write."""
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
    drifts = None if ref is None else torch.empty_like(changes)
    table, children = (coefficients, coefficients.shape[0]), _branch_rows(branches, velocity)
    data = (v, u, guidance_scale, ref, x, children, table, steps, (num_rows, num_branches, numel))
    block, most = block_size(velocity.dtype), triton.next_power_of_2(num_branches)
    launch(
        products_kernel, num_rows * blocks, velocity.device,
        products, drifts, changes, gradient if with_gradient else None, advantages, beta, old, *data,
        BLOCK=block, GROUP=min(SUMS_GROUP, most),
    )  # fmt: skip
    clip = (clip_range, math.log1p(-clip_range), math.log1p(clip_range))
    launch(
        loss_kernel, 1 + (num_rows * blocks if with_gradient else 0), velocity.device,
        gradient, log_ratio, loss, clip_fraction, kl, products, drifts, changes, advantages, clip, beta, *data,
        BLOCK=block, GROUP=min(GROUP, most), CHUNK=CHUNK, PAIRS=PAIRS,
    )  # fmt: skip
    return loss, log_ratio, clip_fraction, kl, gradient


def _branch_rows(branches: Tensor, velocity: Tensor) -> tuple[Tensor, int, int]:
    rows("policy_loss", "branches", branches[:, 0], velocity)
    return branches, branches.stride(0), branches.stride(1)
