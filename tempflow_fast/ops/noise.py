"""Noise as a function: counter-based Gaussian numbers in plain integer tensors.

Philox4x32-10 (Salmon et al., SC11) followed by Box-Muller. It is the specification of csrc/noise.h:

    key     = seed, low and high 32 bits
    counter = element // 4,  branch | step << 16,  trajectory id low,  trajectory id high

Word `element % 4` of the output belongs to the element. Neither the batch nor the number of elements matters, so any
subset of the trajectories gets the same numbers, in any order or split.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

INITIAL_NOISE_STEP = 0xFFFF  # no step of a table has this number
MAX_BRANCHES = 0x10000  # a branch has 16 bits of the counter
WORD = 0xFFFFFFFF
# The constants of Philox4x32-10 as published: rounds, multipliers, and what the key grows by in every round.
ROUNDS, MULTIPLY_0, MULTIPLY_1, WEYL_0, WEYL_1 = 10, 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words in [0, 2^32) per counter.

    Args:
        counter: four int64 tensors of 32-bit words.
        key: two more; all six broadcast together.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # A product of two 32-bit words wraps in int64 but keeps its 64 bits: shift and mask give both halves.
        p0, p1 = c0 * MULTIPLY_0, c2 * MULTIPLY_1
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


def words(trajectory_ids: Tensor, seed: Tensor, step: int, num_branches: int, numel: int) -> Tensor:
    """The uint32 words behind `normals`.

    Args:
        trajectory_ids: int64 [N].
        seed: int64, one value.
        step: the step of the branches, or INITIAL_NOISE_STEP.
        num_branches: K.
        numel: D, the elements of a latent.

    Returns:
        int64 [N, K, numel], in 0..2^32-1.
    """
    device = trajectory_ids.device
    quads = torch.arange((numel + 3) // 4, device=device)
    branch_step = torch.arange(num_branches, device=device)[:, None] + step * MAX_BRANCHES
    ids = trajectory_ids[:, None, None]
    seed = seed.to(device).reshape(())
    out = philox((quads, branch_step, ids & WORD, (ids >> 32) & WORD), (seed & WORD, (seed >> 32) & WORD))
    shape = (trajectory_ids.shape[0], num_branches, quads.shape[0])
    return torch.stack([word.expand(shape) for word in out], dim=-1).flatten(2)[:, :, :numel]


def normals(trajectory_ids: Tensor, seed: Tensor, step: int, num_branches: int, numel: int) -> Tensor:
    """N(0, 1) for every (trajectory, branch, element): float64 [N, K, numel], within 1e-6 of the compiled bodies.

    The arguments are those of `words`.
    """
    padded = (numel + 3) // 4 * 4
    pairs = words(trajectory_ids, seed, step, num_branches, padded).unflatten(2, (padded // 2, 2))
    radius_word, angle_word = pairs.unbind(-1)
    # u in (0, 1] is rounded to float32 exactly where the compiled bodies round it: near 1, ln u depends on every bit.
    u = ((radius_word >> 1).to(torch.float32).to(torch.float64) * 2.0**-31 + 2.0**-32).to(torch.float32)
    radius = (-2 * u.to(torch.float64).log()).sqrt()
    angle = angle_word.to(torch.float64) * (2 * math.pi / 2**32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(2)[:, :, :numel]
