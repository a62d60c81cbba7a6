"""Noise as a function: counter-based Gaussian numbers in plain integer tensors.

Philox4x32-10 (Salmon et al., SC11) with Box-Muller on top, the specification of csrc/noise.h:

    key     = seed, low and high 32 bits
    counter = element // 4,  branch | step << 16,  trajectory id low,  trajectory id high

and word `element % 4` of the output belongs to the element. Neither the batch nor the number of elements enters, so any
subset of the trajectories, in any order or split, sees the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

INITIAL_NOISE_STEP = 0xFFFF  # no step of a table has this number
WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words in [0, 2^32) per counter; all arguments are int64 tensors that broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two 32-bit words wraps in int64, but keeps its 64 bits: shift and mask give both halves.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def words(trajectory_ids: Tensor, seed: Tensor, step: int, num_branches: int, numel: int) -> Tensor:
    """The uint32 words behind `normals`, as int64 [N, K, numel]."""
    device = trajectory_ids.device
    quads = torch.arange((numel + 3) // 4, device=device)
    branch_step = torch.arange(num_branches, device=device)[:, None] + step * 65536
    ids = trajectory_ids[:, None, None]
    seed = seed.to(device).reshape(())
    out = philox((quads, branch_step, ids & WORD, (ids >> 32) & WORD), (seed & WORD, (seed >> 32) & WORD))
    shape = (trajectory_ids.shape[0], num_branches, quads.shape[0])
    return torch.stack([word.expand(shape) for word in out], dim=-1).flatten(2)[:, :, :numel]


def normals(trajectory_ids: Tensor, seed: Tensor, step: int, num_branches: int, numel: int) -> Tensor:
    """N(0, 1) of every (trajectory, branch, element): float64 [N, K, numel], within 1e-6 of the compiled bodies."""
    padded = (numel + 3) // 4 * 4
    pairs = words(trajectory_ids, seed, step, num_branches, padded).unflatten(2, (padded // 2, 2))
    radius_word, angle_word = pairs.unbind(-1)
    # u in (0, 1] is rounded to float32 exactly where the compiled bodies round it: near 1, ln u feels every bit.
    u = ((radius_word >> 1).to(torch.float32).to(torch.float64) * 2.0**-31 + 2.0**-32).to(torch.float32)
    radius = (-2 * u.to(torch.float64).log()).sqrt()
    angle = angle_word.to(torch.float64) * (2 * math.pi / 2**32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(2)[:, :, :numel]
