"""Networks that can be captured: with an adapter, in lower precision, with compiled blocks."""

from __future__ import annotations

import pytest
import torch
from support.captured import assert_equal, draw, nudge
from support.families import each_family, illustrated, tiny_policy
from support.pipelines import sd3_pipeline
from support.tiny import PROMPTS, TinyPolicy
from torch import nn

from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.policies import SD3Policy
from tempflow_fast.policies.compiled import compile_blocks
from tempflow_fast.run.prepare import compute_in

OPTIONS = {"steps": 2, "max_batch": 2, "prompts": PROMPTS[:1], "guidance_scale": 1.0}


@each_family(is_captured=True, has_large_sources=False)
def test_the_models_can_be_captured_with_an_adapter_that_learns(device, tmp_path, name):
    policy, graphs = illustrated(name, tmp_path), CudaGraphs(device)
    policy.add_lora(rank=2, alpha=4)
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration, **OPTIONS), draw(policy, None, iteration, **OPTIONS))
        nudge(policy)
    assert graphs.num_replays > device.events.count("capture") > 0


def test_texts_that_take_several_calls_can_be_captured(device, tmp_path):
    """A network without a mask is called once for each length, which the host knows from the prompts."""
    policy, graphs = tiny_policy("cogview4", tmp_path), CudaGraphs(device)
    options = {**OPTIONS, "prompts": ["a", "a red circle next to the blue squares", "b"]}
    assert len(set(policy.encode(options["prompts"]).kinds)) == 2
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
    assert graphs.num_replays > device.events.count("capture") > 0


@each_family(is_captured=False)
def test_networks_that_wait_for_the_device_run_without_graphs(device, tmp_path, name):
    policy, graphs = tiny_policy(name, tmp_path), CudaGraphs(device)
    with pytest.warns(RuntimeWarning, match="without CUDA graphs: the host waits for the device at"):
        drawn = [draw(policy, graphs, iteration, **OPTIONS) for iteration in range(3)]
    for iteration, got in enumerate(drawn):
        assert_equal(got, draw(policy, None, iteration, **OPTIONS))
    assert "capture" not in device.events


def test_autocast_by_hooks_is_captured_with_the_weights_as_they_are(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    compute_in(policy.network, torch.bfloat16)
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration), draw(policy, None, iteration))
        nudge(policy)
    assert graphs.num_replays > 0


@pytest.mark.slow
def test_blocks_are_compiled_one_by_one_and_captured_or_refused(device, tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    eager = draw(policy, None, steps=2, prompts=PROMPTS[:1])
    names = [name for name, _ in policy.network.named_parameters()]
    blocks = policy.network.transformer_blocks
    compiled = []
    for block in blocks:  # only checks which forward is compiled; the compiler is torch's
        block.compile = lambda block=block, **options: compiled.append(block)
    assert compile_blocks(policy.network) == len(compiled) == len(blocks)
    assert compiled == list(blocks)
    assert [name for name, _ in policy.network.named_parameters()] == names
    for block in blocks:
        nn.Module.compile(block, backend="eager")
    assert_equal(draw(policy, None, steps=2, prompts=PROMPTS[:1]), eager)
    graphs = CudaGraphs(device)
    for _ in range(3):
        assert_equal(draw(policy, graphs, steps=2, prompts=PROMPTS[:1]), eager)
    assert graphs.num_replays > 0
    with pytest.raises(ValueError, match=r"compile_blocks: network must be .* in a ModuleList, got Sequential without"):
        compile_blocks(TinyPolicy().network)
