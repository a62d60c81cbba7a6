"""Rollouts with the adapter merged into the weights: what they compute, what they leave, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from support.pipelines import sd3_pipeline
from support.recording import RecordingDevice
from support.tiny import PROMPTS, brightness, sgd
from torch import nn

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.grpo.acting import acting_network
from tempflow_fast.grpo.measure import measure
from tempflow_fast.policies import SD3Policy
from tempflow_fast.policies.compiled import clock, compile_blocks
from tempflow_fast.policies.merged import merged_weights, num_merged_bytes
from tempflow_fast.policies.quantized import quantized

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3}


def tuned(directory, dtype=torch.bfloat16):
    """A policy whose adapter is as far from its start as training takes it."""
    pipeline = sd3_pipeline(directory)
    pipeline.transformer.to(dtype)
    policy = SD3Policy(pipeline)
    policy.add_lora(4)
    stir(policy, 1)
    return policy


@torch.no_grad()
def stir(policy, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def velocity(policy):
    condition = policy.encode(PROMPTS[:2])
    with torch.no_grad():
        latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
        return policy.velocity(latents, 0.6, condition)[0]


def bits(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_merged_weights_have_the_bits_of_pefts_own_merge_and_leave_no_trace(tmp_path, dtype):
    policy = tuned(tmp_path, dtype)
    theirs = copy.deepcopy(policy.network)
    layers = [module for module in theirs.modules() if hasattr(module, "merge")]
    for layer in layers:
        layer.merge()
    before, parameters = bits(policy.network), dict(policy.network.named_parameters())
    with merged_weights(policy.network):
        inside = bits(policy.network)
    assert layers
    assert all(torch.equal(inside[name], tensor) for name, tensor in bits(theirs).items())
    assert any(not torch.equal(inside[name], before[name]) for name in before)
    assert all(torch.equal(before[name], tensor) for name, tensor in bits(policy.network).items())
    assert all(parameters[name] is parameter for name, parameter in policy.network.named_parameters())


def test_layers_that_share_a_weight_keep_their_own_adapters(tmp_path):
    pipeline = sd3_pipeline(tmp_path)
    first, second = (block.attn.to_q for block in pipeline.transformer.transformer_blocks)
    second.weight = first.weight
    policy = SD3Policy(pipeline)
    policy.add_lora(4)
    stir(policy, 1)
    expected = velocity(policy)
    with merged_weights(policy.network):
        torch.testing.assert_close(velocity(policy), expected)


def test_a_rollout_that_fails_leaves_the_weights_of_training(tmp_path):
    policy = tuned(tmp_path)
    before, expected = bits(policy.network), velocity(policy)
    with pytest.raises(KeyboardInterrupt), merged_weights(policy.network):
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], tensor) for name, tensor in bits(policy.network).items())
    assert torch.equal(velocity(policy), expected)


def test_merged_calls_make_no_products_of_the_adapter(tmp_path):
    policy, calls = tuned(tmp_path), []
    for name, module in policy.network.named_modules():
        if "lora_" in name and isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *call: calls.append(torch.is_grad_enabled()))
    grpo_step(policy, PROMPTS[:1], brightness, sgd(policy, lr=0.0), GRPOConfig(**SMALL, num_updates=1))
    assert calls
    assert all(calls)  # training alone


def test_finished_latents_are_no_further_from_float32_than_those_of_the_network_as_trained(tmp_path):
    """The bits of bf16 move latents more than merging does."""
    wide = tuned(tmp_path, torch.float32)
    with torch.no_grad():
        for parameter in wide.network.parameters():
            if not parameter.requires_grad:
                parameter.copy_(parameter.bfloat16())
    narrow = tuned(tmp_path)
    noise = torch.randn(2, *wide.latent_shape, generator=torch.Generator().manual_seed(0))

    def drawn(policy, weights):
        config = GRPOConfig(num_steps=4, rollout_weights=weights)
        with acting_network(policy, config):
            return tff.rollout(policy, policy.encode(PROMPTS[:2]), config.table(policy), noise, 3).latents

    exact = drawn(wide, "as trained")
    as_trained, merged = ((drawn(narrow, weights) - exact).norm() for weights in ("as trained", "merged"))
    assert 0 < merged < 1.5 * as_trained


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_first_ratios_are_one(tmp_path, guidance_scale):
    policy = tuned(tmp_path)
    config = GRPOConfig(**SMALL, num_updates=2, guidance_scale=guidance_scale, beta=0.1, max_batch=7)
    metrics = grpo_step(policy, PROMPTS[:2], brightness, sgd(policy, lr=0.0), config)
    assert metrics["grad_norm"] > 0
    assert metrics["log_ratio_rms"] == metrics["clip_fraction"] == 0
    assert metrics["kl"] > 0  # the reference has no adapter


@pytest.mark.slow
@pytest.mark.skipif(" " in torch.__path__[0], reason="torch.compile does not work in a path with a space")
def test_compiled_blocks_serve_all_iterations_and_see_the_new_adapter(tmp_path):
    policy = tuned(tmp_path)
    compile_blocks(policy.network)
    config, counts, velocities = GRPOConfig(rollout_weights="merged"), [], []
    for seed in range(3):
        stir(policy, seed)
        with acting_network(policy, config):
            velocities.append(velocity(policy))
        counts.append(clock.num_compilations)
    assert counts[0] == counts[-1] > 0
    assert not torch.equal(velocities[-1], velocities[-2])


@pytest.mark.parametrize("weights", ["as trained", "merged", None])
def test_the_setting_decides_and_by_default_the_widths_do(tmp_path, weights):
    for dtype in (torch.bfloat16, torch.float32):
        policy = tuned(tmp_path, dtype)
        layer = next(module for module in policy.network.modules() if hasattr(module, "merge"))
        with acting_network(policy, GRPOConfig(rollout_weights=weights)):
            assert layer.merged == (weights == "merged" or (weights is None and dtype == torch.bfloat16))


def test_graphs_hold_over_iterations_and_see_the_new_adapter(tmp_path):
    policy, config = tuned(tmp_path), GRPOConfig(num_steps=4, rollout_weights="merged")
    graphs, condition, table = CudaGraphs(RecordingDevice()), policy.encode(PROMPTS[:2]), None
    table = config.table(policy)
    noise = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    drawn = []
    for seed in range(4):
        stir(policy, seed)
        with acting_network(policy, config):
            replayed = tff.rollout(policy, condition, table, noise, 3, graphs=graphs).latents
            assert torch.equal(replayed, tff.rollout(policy, condition, table, noise, 3).latents)
        drawn.append(replayed)
    assert graphs.num_replays > 0
    assert graphs.num_graphs <= 4  # one per shape, in all iterations
    assert not torch.equal(drawn[-1], drawn[-2])


def test_8_bits_follow_the_merged_weights(tmp_path):
    policy, seen = tuned(tmp_path), []
    layer = policy.network.transformer_blocks[0].attn.to_q
    for seed in range(2):
        stir(policy, seed)
        with merged_weights(policy.network), quantized(policy.network, "int8"):
            seen.append(layer.base_layer.weight.dequantize())
    assert not torch.equal(*seen)


def test_what_cannot_be_merged_is_refused(tmp_path):
    policy = tuned(tmp_path)
    with merged_weights(policy.network):
        with (
            pytest.raises(ValueError, match="one with its adapter active and not merged"),
            merged_weights(policy.network),
        ):
            pass
        with pytest.raises(ValueError, match="reference: network must be one whose adapter is not merged"):
            policy.reference().__enter__()


def test_memory_counts_the_copies(tmp_path):
    policy = tuned(tmp_path)
    merged = measure(policy, GRPOConfig(**SMALL)).merged
    adapted = [module.base_layer.weight for module in policy.network.modules() if hasattr(module, "merge")]
    assert merged == num_merged_bytes(policy.network) == sum(2 * w.numel() for w in adapted)
