"""Published speeds of GPUs: what a card is said to do, and the share of it that training is assumed to reach."""

from __future__ import annotations

from dataclasses import dataclass

UTILISATION = 0.4
"""Assumed share of the published peak; large transformers in bf16 reach 0.3 to 0.5."""
GB = 10**9
SIZES = (24, 48, 80)
"""Gigabytes of common cards, of 10^9 bytes: the rest of what a data sheet calls a GB is left to CUDA and fragments."""


@dataclass(frozen=True)
class Card:
    """A GPU, from its vendor's data sheet."""

    tflops: float
    """Peak of dense bf16 products with float32 sums, in 10^12 operations per second."""
    memory: int
    """GB."""


CARDS = {
    "a100-40": Card(312, 40),
    "a100": Card(312, 80),
    "h100-pcie": Card(756, 80),
    "h100": Card(989, 80),
    "h200": Card(989, 141),
    "b200": Card(2250, 180),
    "l40s": Card(362, 48),
    "rtx-3090": Card(71, 24),
    "rtx-4090": Card(165, 24),
    "mi300x": Card(1307, 192),
}
"""Data sheets of NVIDIA (A100, H100, H200, B200, L40S; GA102 and Ada architecture papers for the RTX cards) and AMD
(MI300X), without sparsity."""
