"""Rows of the calls of a rollout, and what all-gathers cost it on paper."""

from __future__ import annotations

import pytest
import torch

from bench.gather_law import Network, network, per_branch, seconds, wavefront
from bench.gpu.models import TINY_SD3, random_policy
from tempflow_fast import linear_sigmas, step_table

TABLE = step_table(linear_sigmas(10))


@pytest.mark.parametrize(("limit", "calls"), [(None, (54, 10)), (24, (54, 18)), (6, (54, 54))])
def test_both_structures_evaluate_the_same_rows(limit, calls):
    ways = [list(rows(TABLE, 1, limit)) for rows in (per_branch, wavefront)]
    assert tuple(map(len, ways)) == calls
    assert [sum(rows) for rows in ways] == [9 + 6 * 45] * 2
    assert all(row <= (limit or row) for rows in ways for row in rows)


def test_products_hide_gathers_of_large_calls_only():
    counted = Network(bytes=8 * 10**9, largest_unit=10**9, num_units=9, flop_per_row=400e12)
    total, bare = seconds(counted, [1, 10, 100], link=1e9)  # a gather takes 7 seconds, a row one
    assert (total, bare) == (pytest.approx(21), pytest.approx(6))


def test_a_network_is_counted_as_its_weights_are():
    policy = random_policy(TINY_SD3, torch.device("cpu"), torch.bfloat16, lora=False)
    counted = network(TINY_SD3)
    assert counted.bytes == sum(parameter.nbytes for parameter in policy.parameters())
    assert counted.num_units == 2 + 1
    assert counted.largest_unit < counted.bytes
