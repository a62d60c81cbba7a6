"""policy_loss in two launches: sums of products per block, then statistics and the gradient.

The gradient of a row needs its log-ratios, and those a sum over the whole row, so the data is read twice; the second
launch takes the rows backwards, since the last of the first are still in the cache.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks_of, launch, rows, tile
from .rows import load_guided, load_row, locate, step_row, sum_blocks

GROUP = 8  # branches in registers at once: as many accesses in flight
CHUNK = 64  # partial sums of each row that are read at once
PAIRS = 128  # log-ratios that the program of the statistics takes at once


@triton.jit
def policy_velocity(v, v_stride, u, u_stride, scale, row, first, inside, BLOCK: tl.constexpr):
    """Guided and rounded as `guided_velocity` stores it, so that an unchanged policy is equal to it bit for bit."""
    value = load_guided(v, v_stride, u, u_stride, scale, row, first, inside, BLOCK)
    return value.to(v.dtype.element_ty).to(tl.float32)


@triton.jit
def load_branches(
    branches, row_stride, stride, row, k, num_branches, first, inside, BLOCK: tl.constexpr
):  # fmt: skip
    """[GROUP, BLOCK] of float32: the block of branches k."""
    at = branches + row * row_stride + k[:, None].to(tl.int64) * stride + first + tl.arange(0, BLOCK)[None, :]
    return tl.load(at, mask=(k < num_branches)[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["num_steps", "num_rows", "num_branches"])
def products_kernel(
    products, drifts, old_rows, old_stride,
    v_rows, v_stride, u_rows, u_stride, scale, x_rows, x_stride, ref_rows, ref_stride,
    branches, branches_row_stride, branches_stride, table, num_steps, steps, num_rows, num_branches, numel,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One block of a row: half of the sums that log r of every branch consists of, and the sum of (v - v_ref)^2."""
    row, block, first, inside = locate(tl.program_id(0), numel, BLOCK)
    _, a, b, _, _ = step_row(table, num_steps, tl.load(steps + row))
    v = policy_velocity(v_rows, v_stride, u_rows, u_stride, scale, row, first, inside, BLOCK)
    old = load_row(old_rows, old_stride, row, first, inside, BLOCK)
    x = load_row(x_rows, x_stride, row, first, inside, BLOCK)
    shift = b * (v - old)
    centre = tl.fma(tl.full([BLOCK], -0.5, tl.float32), shift, -tl.fma(tl.full([BLOCK], a, tl.float32), x, b * old))
    blocks = tl.cdiv(numel, BLOCK)
    for k0 in range(0, num_branches, GROUP):
        k = k0 + tl.arange(0, GROUP)
        child = load_branches(
            branches, branches_row_stride, branches_stride, row, k, num_branches, first, inside, BLOCK
        )  # fmt: skip
        sums = tl.sum(shift[None, :] * (child + centre[None, :]), axis=1)
        tl.store(products + (row * num_branches + k) * blocks + block, sums, mask=k < num_branches)
    if ref_rows is not None:
        drift = v - load_row(ref_rows, ref_stride, row, first, inside, BLOCK)
        tl.store(drifts + row * blocks + block, tl.sum(drift * drift))


@triton.jit
def surrogate(log_ratio, advantage, clip_range, low, high):
    """max(-A r, -A clip(r)), its derivative with respect to log r, and whether r is outside the range.

    Decided on log r: r itself has a grain of 1.2e-7 beside 1, as large as clip ranges care about.
    """
    above, below = log_ratio > high, log_ratio < low
    flat = (above & (advantage > 0)) | (below & (advantage < 0))
    bound = tl.where(above, 1.0 + clip_range, 1.0 - clip_range)
    value = -advantage * tl.where(flat, bound, tl.exp(log_ratio))
    return value, tl.where(flat, 0.0, value), above | below


@triton.jit
def statistics(
    log_ratio, loss, clip_fraction, kl, products, drifts, has_ref: tl.constexpr, advantages, clip_range, low, high, beta,
    table, num_steps, steps, num_rows, num_branches, numel, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Everything that is not [R, D], by one program: it adds the partial sums of all rows, in a fixed order."""
    blocks, count = tl.cdiv(numel, BLOCK), num_rows * num_branches
    objective, outside = tl.zeros([PAIRS], tl.float64), tl.zeros([PAIRS], tl.float64)
    for first in range(0, count, PAIRS):
        pair = first + tl.arange(0, PAIRS).to(tl.int64)
        exists = pair < count
        _, _, _, s, weight = step_row(
            table, num_steps, tl.load(steps + pair // num_branches, mask=exists, other=0)
        )  # fmt: skip
        value = sum_blocks(products, pair, exists, blocks, CHUNK) / (s * s * numel)
        tl.store(log_ratio + pair, value, mask=exists)
        advantage = tl.load(advantages + pair, mask=exists, other=0.0)
        share, _, clipped = surrogate(value, advantage, clip_range, low, high)
        objective += tl.where(exists, weight * share, 0.0)
        outside += tl.where(exists & clipped, 1.0, 0.0)
    drift = tl.zeros([PAIRS], tl.float64)
    if has_ref:
        for first in range(0, num_rows, PAIRS):
            row = first + tl.arange(0, PAIRS).to(tl.int64)
            exists = row < num_rows
            _, _, b, s, _ = step_row(table, num_steps, tl.load(steps + row, mask=exists, other=0))
            share = b / s * (b / s) * sum_blocks(drifts, row, exists, blocks, CHUNK) / (2.0 * numel)
            drift += tl.where(exists, share, 0.0)
    divergence = tl.sum(drift) / num_rows
    tl.store(kl, divergence.to(tl.float32))
    tl.store(loss, (tl.sum(objective) / count + beta * divergence).to(tl.float32))
    tl.store(clip_fraction, (tl.sum(outside) / count).to(tl.float32))


@triton.jit
def gradient_block(
    gradient, products, advantages, clip_range, low, high, beta,
    v_rows, v_stride, u_rows, u_stride, scale, x_rows, x_stride, ref_rows, ref_stride,
    branches, branches_row_stride, branches_stride, table, num_steps, steps, num_rows, num_branches, numel,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One block of a row: sum over k of d loss / d log r_k times b / (s^2 D) (x'_k - m), and the share of the KL."""
    row, _, first, inside = locate(tl.program_id(0) - 1, numel, BLOCK)
    row, blocks = num_rows - 1 - row, tl.cdiv(numel, BLOCK)
    _, a, b, s, weight = step_row(table, num_steps, tl.load(steps + row))
    v = policy_velocity(v_rows, v_stride, u_rows, u_stride, scale, row, first, inside, BLOCK)
    x = load_row(x_rows, x_stride, row, first, inside, BLOCK)
    mean = tl.fma(tl.full([BLOCK], a, tl.float32), x, b * v)
    value = tl.zeros([BLOCK], tl.float32)
    if ref_rows is not None:
        drift = v - load_row(ref_rows, ref_stride, row, first, inside, BLOCK)
        value = beta * (b / s) * (b / s) / (num_rows * numel) * drift
    factor = weight / (num_rows * num_branches) * b / (s * s * numel)
    for k0 in range(0, num_branches, GROUP):
        k = k0 + tl.arange(0, GROUP)
        exists, pair = k < num_branches, row * num_branches + k
        child = load_branches(
            branches, branches_row_stride, branches_stride, row, k, num_branches, first, inside, BLOCK
        )  # fmt: skip
        log_ratio = sum_blocks(products, pair, exists, blocks, CHUNK) / (s * s * numel)
        advantage = tl.load(advantages + pair, mask=exists, other=0.0)
        _, slope, _ = surrogate(log_ratio, advantage, clip_range, low, high)
        value += tl.sum((factor * slope)[:, None] * (child - mean[None, :]), axis=0)
    tl.store(gradient + row * numel + first + tl.arange(0, BLOCK), value, mask=inside)


@triton.jit(do_not_specialize=["num_steps", "num_rows", "num_branches"])
def loss_kernel(
    gradient, log_ratio, loss, clip_fraction, kl, products, drifts, advantages, clip_range, low, high, beta,
    v_rows, v_stride, u_rows, u_stride, scale, x_rows, x_stride, ref_rows, ref_stride,
    branches, branches_row_stride, branches_stride, table, num_steps, steps, num_rows, num_branches, numel,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """The first program makes the statistics, every other one a block of the gradient."""
    if tl.program_id(0) == 0:
        statistics(
            log_ratio, loss, clip_fraction, kl, products, drifts, ref_rows is not None, advantages, clip_range, low,
            high, beta, table, num_steps, steps, num_rows, num_branches, numel, BLOCK, CHUNK, PAIRS,
        )  # fmt: skip
    else:
        gradient_block(
            gradient, products, advantages, clip_range, low, high, beta,
            v_rows, v_stride, u_rows, u_stride, scale, x_rows, x_stride, ref_rows, ref_stride,
            branches, branches_row_stride, branches_stride, table, num_steps, steps, num_rows, num_branches, numel,
            BLOCK, GROUP, CHUNK,
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
    """See tempflow_fast/reference.py; two launches, the second of one program if there is no gradient to write."""
    num_rows, num_branches, numel = branches.shape
    shapes = [(), (num_rows, num_branches), (), (), (num_rows, numel) if with_gradient else (0,)]
    loss, log_ratio, clip_fraction, kl, gradient = (velocity.new_empty(s, dtype=torch.float32) for s in shapes)
    if not num_rows:
        return loss.zero_(), log_ratio, clip_fraction.zero_(), kl.zero_(), gradient
    old, v, u, x, ref = (
        rows("policy_loss", name, tensor, velocity)
        for name, tensor in (
            ("velocity_old", velocity_old),
            ("velocity", velocity),
            ("velocity_uncond", velocity_uncond),
            ("latents", latents),
            ("velocity_ref", velocity_ref),
        )
    )
    if num_branches and numel > 1 and branches.stride(2) != 1:
        raise RuntimeError("policy_loss: branches must be contiguous within each branch")
    blocks = blocks_of(numel, velocity.dtype)
    products = velocity.new_empty(num_rows, num_branches, blocks, dtype=torch.float32)
    drifts = None if velocity_ref is None else velocity.new_empty(num_rows, blocks, dtype=torch.float32)
    data = (
        *v, *u, guidance_scale, *x, *ref, branches, branches.stride(0), branches.stride(1),
        coefficients, coefficients.shape[0], steps, num_rows, num_branches, numel,
    )  # fmt: skip
    sizes = tile(velocity.dtype) | {"GROUP": min(GROUP, triton.next_power_of_2(num_branches))}
    launch(products_kernel, num_rows * blocks, products, drifts, *old, *data, **sizes)
    launch(
        loss_kernel, 1 + (num_rows * blocks if with_gradient else 0),
        gradient, log_ratio, loss, clip_fraction, kl, products, drifts, advantages,
        clip_range, math.log1p(-clip_range), math.log1p(clip_range), beta, *data, **sizes, CHUNK=CHUNK, PAIRS=PAIRS,
    )  # fmt: skip
    return loss, log_ratio, clip_fraction, kl, gradient
