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
    """A GPU, from what its vendor publishes."""

    tflops: float
    """Peak of dense bf16 products with float32 sums, in 10^12 operations per second."""
    memory: int
    """GB."""
    source: str
    """The vendor's publication. Data sheets that state the peak with sparsity state twice this one."""


CARDS = {
    "a100-40": Card(312, 40, "NVIDIA, A100 data sheet"),
    "a100": Card(312, 80, "NVIDIA, A100 data sheet"),
    "h100-pcie": Card(756, 80, "NVIDIA, H100 data sheet: 1,513 with sparsity"),
    "h100": Card(989, 80, "NVIDIA, H100 data sheet (SXM): 1,979 with sparsity"),
    "h200": Card(989, 141, "NVIDIA, H200 data sheet (SXM): 1,979 with sparsity"),
    "b200": Card(2250, 180, "NVIDIA, Blackwell data sheet (HGX B200): 4,500 with sparsity"),
    "l40s": Card(362, 48, "NVIDIA, L40S data sheet: 362.05, 733 with sparsity"),
    "rtx-3090": Card(71, 24, "NVIDIA, Ampere GA102 architecture paper"),
    "rtx-4090": Card(165, 24, "NVIDIA, Ada architecture paper: 165.2"),
    "mi300x": Card(1307, 192, "AMD, MI300X data sheet: 1,307.4"),
}
