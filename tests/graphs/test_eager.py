"""A network that cannot be captured runs without graphs, with one warning that says why."""

from __future__ import annotations

import torch
from support.captured import assert_equal, draw, expect_eager
from support.pipelines import qwen_image_pipeline
from support.tiny import PROMPTS, TinyPolicy, brightness
from torch import nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh

import tempflow_fast as tff
from tempflow_fast.graphs.capture import obstacle, replayable
from tempflow_fast.graphs.replay import CudaGraphs, graphs_of
from tempflow_fast.policies import QwenImagePolicy


def test_qwen_image_waits_where_texts_differ_in_length(device, tmp_path):
    policy, graphs = QwenImagePolicy(qwen_image_pipeline(tmp_path)), CudaGraphs(device)
    # diffusers copies the length of the text to the device there, in every call.
    expect_eager(policy, graphs, "the host waits for the device at lift_fresh", steps=2, max_batch=2)


class WaitingPolicy(TinyPolicy):
    """Reads a value from the device, like a model that masks by length."""

    waits = 1000

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        if self.waits:
            self.waits -= 1
            assert sigma.max().item() > 0
        return super().velocity(latents, sigma, condition, guidance_scale)


def test_a_waiting_network_is_found_before_any_capture(device):
    graphs = CudaGraphs(device)
    expect_eager(WaitingPolicy(), graphs, "the host waits for the device at _local_scalar_dense")
    assert "capture" not in device.events
    assert not graphs.num_replays


def test_one_wait_while_something_compiles_is_forgiven(device):
    policy, graphs = WaitingPolicy(), CudaGraphs(device)
    policy.waits = 1
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration), draw(policy, None, iteration))
    assert "capture" in device.events


def test_a_capture_that_fails_leaves_eager_calls(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    device.capture = lambda function: device.fail()
    device.fail = lambda: (_ for _ in ()).throw(RuntimeError("operation not permitted when stream is capturing\nmore"))
    expect_eager(policy, graphs, "capture failed: operation not permitted when stream is capturing")


def test_hooks_are_named_and_respected_until_they_are_removed(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    seen = []
    handle = policy.network[0].register_forward_hook(lambda *_: seen.append(1))
    expect_eager(policy, graphs, "Linear '0' has forward hooks, which a replay would not call")
    assert seen
    assert not device.events
    handle.remove()
    policy.network[0].register_forward_hook(replayable(lambda *_: None))
    for _ in range(3):
        draw(policy, graphs)
    assert graphs.num_replays > 0


def test_offloaded_networks_and_hooks_of_all_modules_are_named():
    network = nn.Sequential(nn.Linear(2, 2))
    assert obstacle(network) is None
    every = nn.modules.module
    for register in (every.register_module_forward_hook, every.register_module_forward_pre_hook):
        handle = register(lambda *_: None)
        assert obstacle(network) == "there are global forward hooks, which a replay would not call"
        handle.remove()
    assert obstacle(network) is None
    network[0]._hf_hook = object()
    assert "moved between devices" in obstacle(network)


def test_a_sharded_network_runs_as_it_is(device, tmp_path):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fsdp.fully_shard(policy.network, mesh=init_device_mesh("cpu", (1,)))
        reason = "FSDPSequential is sharded by FSDP, whose all-gathers run outside a graph"
        expect_eager(policy, graphs, reason)
    finally:
        torch.distributed.destroy_process_group()
    assert not device.events


def test_on_a_cpu_graphs_are_eager_without_a_warning(recwarn):
    policies = [TinyPolicy(), TinyPolicy()]
    assert graphs_of(policies[0]) is None
    for policy, wanted in zip(policies, (True, False), strict=True):
        config = tff.GRPOConfig(num_steps=3, num_branches=2, num_seeds=1, cuda_graphs=wanted)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        tff.grpo_step(policy, PROMPTS, brightness, optimizer, config, 1)
    assert not [warning for warning in recwarn if "graph" in str(warning.message)]
    assert torch.equal(policies[0].network[0].weight, policies[1].network[0].weight)
