"""Captured rollouts against eager ones, on a stand-in that enforces the rules of stream capture."""

from __future__ import annotations

import pytest
import torch
from support.captured import assert_equal, draw, nudge
from support.tiny import PROMPTS, TinyPolicy

import tempflow_fast as tff
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.grpo.tails import make_tails


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0, "max_batch": None}, {"branch_steps": (0, 2)}])
def test_replays_equal_eager_and_follow_seed_ids_schedule_text_and_weights(device, options):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    for iteration in range(4):
        assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
        nudge(policy)
    assert device.events.count("capture") == graphs.num_graphs > 0
    # From the third iteration on, everything is replayed.
    calls = draw(policy, None, **options).num_calls
    assert device.events[-2 * calls :] == ["replay"] * (2 * calls)


def test_graphs_of_all_sizes_read_their_inputs_at_one_address(device):
    graphs, addresses = CudaGraphs(device), set()
    graphs.begin(TinyPolicy(), num_rows=8)

    def double(inputs):
        addresses.add(inputs["x"].data_ptr())
        return (2 * inputs["x"],)

    for num_rows in (5, 8, 3):
        for value in range(4):
            (result,) = graphs.run("double", double, {"x": torch.full((num_rows, 2), float(value))})
            assert result.tolist() == [[2 * value, 2 * value]] * num_rows
    assert graphs.num_graphs == 3
    assert len(addresses) == 1


def test_graphs_keep_their_buffers_when_larger_ones_are_made(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    few, many = {"prompts": PROMPTS[:1], "max_batch": 2}, {"max_batch": 8}
    for iteration, options in enumerate((few, few, many, many, few, few)):
        before = device.events.count("capture")
        assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
    assert device.events.count("capture") == before


def test_few_graphs_are_kept(device, monkeypatch):
    monkeypatch.setattr("tempflow_fast.graphs.replay.MAX_GRAPHS", 3)
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    for iteration in range(3):
        options = {"iteration": iteration, "max_batch": None, "steps": 6}
        assert_equal(draw(policy, graphs, **options), draw(policy, None, **options))
        assert graphs.num_graphs <= 3
    assert device.events.count("capture") > 3


def test_many_row_counts_become_few_and_the_eager_twin_pads_alike(device):
    policy, graphs, twin = TinyPolicy(), CudaGraphs(device), CudaGraphs(None)
    for iteration in range(3):
        options = {"iteration": iteration, "max_batch": None, "steps": 22}
        captured, eager = draw(policy, graphs, **options), draw(policy, twin, **options)
        assert_equal(captured, eager)
        assert captured.num_row_evaluations == eager.num_row_evaluations
    assert len({count for count, _ in policy.calls}) <= 16
    plain = draw(policy, None, **options)
    assert plain.num_row_evaluations < captured.num_row_evaluations < 1.1 * plain.num_row_evaluations
    torch.testing.assert_close(captured.latents, plain.latents, rtol=1e-4, atol=1e-5)


def test_tails_of_all_lengths_are_captured(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    table, condition, noise = tff.step_table(policy.sigmas(6)), policy.encode(PROMPTS), torch.randn(3, 3, 2, 2)
    tails = make_tails(table, {0: 2, 1: 4, 2: 1, 3: 2, 4: 1}, "ab2")
    for _ in range(3):
        got = tff.rollout(policy, condition, table, noise, 3, graphs=graphs, tails=tails)
        want = tff.rollout(policy, condition, table, noise, 3, tails=tails)
        assert torch.equal(got.latents, want.latents)
    assert graphs.num_replays > 0
