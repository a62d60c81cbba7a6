"""Cheaper network calls in the rollout, low precision and compiled blocks: what they may change, and what not."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from support.pipelines import sd3_pipeline
from support.recording import RecordingDevice
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd
from torch import nn

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.grpo.acting import acting_network
from tempflow_fast.grpo.advantages import group_advantages
from tempflow_fast.grpo.measure import measure
from tempflow_fast.grpo.objective import MicroBatch, micro_batch_loss
from tempflow_fast.policies import SD3Policy
from tempflow_fast.policies.compiled import clock, compile_blocks
from tempflow_fast.policies.quantized import _torchao, quantized

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3}


@pytest.fixture
def seen():
    """Notes (keeps a graph, computes in) of every network call of a policy."""
    calls = []

    def watch(policy):
        def note(module, inputs, output):
            calls.append((torch.is_grad_enabled(), output.dtype))

        first = next(module for module in policy.network.modules() if isinstance(module, nn.Linear))
        first.register_forward_hook(note)
        return calls

    return watch


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["perceptron", "sd3", "lora", "checkpointing"])
def test_low_precision_rollout_leaves_the_first_ratios_at_one(kind, guidance_scale, tmp_path, seen):
    policy = TinyPolicy() if kind == "perceptron" else SD3Policy(sd3_pipeline(tmp_path))
    if kind == "lora":
        policy.add_lora(4)
    if kind == "checkpointing":
        policy.enable_gradient_checkpointing()
    calls, settings = seen(policy), {"guidance_scale": guidance_scale, "beta": 0.1, "max_batch": 7}
    config = GRPOConfig(**SMALL, num_updates=2, rollout_precision="bf16", **settings)
    metrics = grpo_step(policy, PROMPTS[:2], brightness, sgd(policy, lr=0.0), config)
    assert metrics["signal_fraction"] == 1
    assert metrics["grad_norm"] > 0
    assert metrics["log_ratio_rms"] == metrics["clip_fraction"] == metrics["kl"] == 0
    in_rollout = calls[: next(i for i, call in enumerate(calls) if call[1] == torch.float32)]
    assert len(in_rollout) >= metrics["num_calls"]
    assert {dtype for _, dtype in in_rollout} == {torch.bfloat16}
    assert {dtype for _, dtype in calls[len(in_rollout) :]} == {torch.float32}


@pytest.mark.parametrize("adapter", [False, True])
def test_8_bits_in_the_rollout_leave_the_first_ratios_at_one_and_the_weights_in_place(adapter, tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    if adapter:
        policy.add_lora(4)
    weights, kinds = dict(policy.network.named_parameters()), set()
    # Layers of up to 16 inputs, such as those of attention here, stay as they are with torchao before 0.18.
    policy.network.transformer_blocks[0].ff.net[2].register_forward_hook(
        lambda module, inputs, output: kinds.add((torch.is_grad_enabled(), type(module.weight.data).__name__))
    )
    config = GRPOConfig(**SMALL, rollout_precision="int8", max_batch=7)
    metrics = grpo_step(policy, PROMPTS[:2], brightness, sgd(policy, lr=0.0), config)
    assert metrics["log_ratio_rms"] == 0
    assert metrics["grad_norm"] > 0
    assert {kind for with_graph, kind in kinds if with_graph} == {"Tensor"}
    assert any(kind != "Tensor" for with_graph, kind in kinds if not with_graph)
    assert all(parameter is weights[name] for name, parameter in policy.network.named_parameters())


@pytest.mark.parametrize("adapter", [False, True])
def test_8_bits_are_near_and_see_the_weights_as_they_are(adapter, tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    if adapter:
        policy.add_lora(4)
    inputs = (torch.randn(2, *policy.latent_shape), torch.full((2,), 0.5), policy.encode(PROMPTS[:2]), 1.0)

    @torch.no_grad()
    def velocities():
        exact = policy.velocity(*inputs)[0]
        with quantized(policy.network, "int8"):
            return exact, policy.velocity(*inputs)[0]

    before = velocities()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    for exact, near in (before, velocities()):
        assert 0 < (near - exact).norm() / exact.norm() < 0.05
    assert (velocities()[0] - before[0]).norm() / before[0].norm() > 0.1, "the weights have hardly changed"


def test_scales_are_what_the_docs_say():
    """fp8 cannot run here, but its config can be made: torchao's scales per row would refuse weights in float32."""
    torchao = pytest.importorskip("torchao.quantization")
    fp8, int8 = _torchao("fp8")[0], _torchao("int8")[0]
    assert fp8.granularity == [torchao.PerTensor(), torchao.PerTensor()]
    assert fp8.weight_dtype == fp8.activation_dtype == torch.float8_e4m3fn
    assert int8.granularity == torchao.PerRow()


def test_8_bits_that_are_not_to_be_had_are_refused(monkeypatch, tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    weight = policy.network.transformer_blocks[0].attn.to_q.weight
    with pytest.raises(ValueError, match="supported by the device, got fp8 on cpu"), quantized(policy.network, "fp8"):
        pass
    with pytest.raises(ValueError, match="with blocks of linear layers"), quantized(TinyPolicy().network, "int8"):
        pass
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match="pip install torchao"), quantized(policy.network, "int8"):
        pass
    assert policy.network.transformer_blocks[0].attn.to_q.weight is weight
    with pytest.raises(ValueError, match=r"rollout_precision must be None or 'bf16' with cuda_graphs, got 'int8'"):
        GRPOConfig(rollout_precision="int8", cuda_graphs=True)


def test_low_precision_is_near_and_leaves_noise_and_densities(seen):
    policy = TinyPolicy()
    table, noise = tff.step_table(policy.sigmas(4)), torch.randn(3, 3, 2, 2)

    def draw(config):
        with acting_network(policy, config):
            return tff.rollout(policy, policy.encode(PROMPTS), table, noise, 3)

    full, low = draw(GRPOConfig()), draw(GRPOConfig(rollout_precision="bf16"))
    assert low.latents.dtype == low.states.dtype == torch.float32
    distance = (low.latents - full.latents).norm() / full.latents.norm()
    assert 0 < distance < 1e-2
    assert torch.equal(low.log_prob, full.log_prob)
    assert torch.equal(low.states[:, 0], full.states[:, 0])


def test_a_shift_of_all_branches_of_a_group_leaves_the_gradient():
    """Why another precision may draw them: it moves the mean of all alike, and advantages of a group sum to 0."""
    policy, generator = TinyPolicy(torch.float64), torch.Generator().manual_seed(0)
    table, shape = tff.step_table(policy.sigmas(4)), policy.latent_shape

    def rand(*size):
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    latents, branches, shift = rand(3, *shape), rand(3, 5, *shape), rand(3, 1, *shape)
    advantages, steps = group_advantages(rand(3, 1, 5), "seed", torch.arange(3))[:, 0], torch.tensor([0, 1, 2])
    gradients = []
    for moved in (branches, branches + shift):
        sigma, condition = table.sigma[steps], policy.encode(PROMPTS)
        batch = MicroBatch(latents, moved, advantages, steps, sigma, condition, table)
        micro_batch_loss(policy, batch, None, 1e-4, 0.0, 1.0).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
        sgd(policy).zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)
    assert gradients[0].norm() > 0


def test_captured_low_precision_calls_see_the_weights_as_they_are(tmp_path):
    device = RecordingDevice()
    policy, graphs = SD3Policy(sd3_pipeline(tmp_path)), CudaGraphs(device)
    table, noise = tff.step_table(policy.sigmas(3)), torch.randn(2, *policy.latent_shape)

    def draw(graphs):
        with acting_network(policy, GRPOConfig(rollout_precision="bf16")):
            return tff.rollout(policy, policy.encode(PROMPTS[:2]), table, noise, 2, graphs=graphs).latents

    for _ in range(3):
        assert torch.equal(draw(graphs), draw(None))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.1)
    assert graphs.num_replays > 0
    assert not device.violations


@pytest.mark.slow
def test_blocks_are_compiled_once_for_all_row_counts_and_never_for_training(tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    policy.add_lora(4)
    policy.enable_gradient_checkpointing()
    twin = copy.deepcopy(policy)
    torch.compiler.reset()
    assert compile_blocks(policy.network) > 1
    config = {**SMALL, "num_updates": 2, "guidance_scale": 3.0, "beta": 0.1}
    wholes = (
        {},
        {"max_batch": 5},
        {"num_branches": 2, "num_seeds": 3},
        {"branches_per_trajectory": 2, "tail_steps": 1},
    )
    counts = [clock.num_compilations]
    with torch.compiler.set_stance("default", force_backend="eager"):
        for settings in (*wholes, {"rollout_precision": "bf16"}):
            metrics = [
                grpo_step(each, PROMPTS[:2], brightness, sgd(each, 0.0), GRPOConfig(**{**config, **settings}))
                for each in (policy, twin)
            ]
            counts.append(clock.num_compilations)
            for name in ("reward_mean", "grad_norm", "log_ratio_rms", "kl"):
                assert metrics[0][name] == metrics[1][name], name
            assert (metrics[0]["seconds_compile"] > 0) == (counts[-1] > counts[-2])
    kinds = 2  # the last block of SD3 has no text to pass on
    assert [count - counts[0] for count in counts] == [0, *[kinds] * len(wholes), 2 * kinds]


@pytest.mark.slow
def test_dry_run_measures_a_compiled_network_without_compiling(tmp_path):
    policy, plain = SD3Policy(sd3_pipeline(tmp_path)), SD3Policy(sd3_pipeline(tmp_path))
    compile_blocks(policy.network)
    before = clock.num_compilations
    assert measure(policy, GRPOConfig(**SMALL)) == measure(plain, GRPOConfig(**SMALL))
    assert clock.num_compilations == before
