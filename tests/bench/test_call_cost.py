"""The counter of kernels and traffic, and what merging an adapter saves."""

from __future__ import annotations

import torch

from bench.call_cost import CallCounter, call_cost
from bench.gpu.models import TINY_SD3


def test_views_are_free_and_products_in_16_bits_carry_no_traffic():
    with CallCounter() as counter:
        rows = torch.empty(4, 8, device="meta")
        rows.view(8, 4).t()[1:] + 1
        rows.bfloat16() @ torch.empty(8, 2, device="meta", dtype=torch.bfloat16)
    assert counter.cost.kernels == 3  # the sum, the cast, the product
    assert counter.cost.traffic == 2 * 4 * 24 + (4 + 2) * 32


def test_a_merged_call_costs_what_the_bare_network_does():
    bare, as_trained, merged = (call_cost(TINY_SD3, 3, kind) for kind in ("bare", "as trained", "merged"))
    assert merged == bare
    assert as_trained.kernels > 1.3 * merged.kernels
    assert as_trained.traffic > 1.3 * merged.traffic
