"""Adapters: what they train, and the files they leave, as diffusers reads them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.pipelines import flux_pipeline, qwen_image_pipeline, sd3_pipeline
from support.tiny import PROMPTS, brightness

import tempflow_fast as tff
from tempflow_fast.policies import FluxPolicy, QwenImagePolicy, SD3Policy
from tempflow_fast.policies.lora_file import WEIGHTS
from tempflow_fast.run.load import load_policy

BUILDS = {SD3Policy: sd3_pipeline, FluxPolicy: flux_pipeline, QwenImagePolicy: qwen_image_pipeline}
CLASSES = pytest.mark.parametrize("policy_class", BUILDS, ids=lambda cls: cls.__name__)


def tuned(policy_class, directory, rank=4, alpha=12.0):
    """A policy whose adapter is not at its start any more, with the same weights at every call."""
    policy = policy_class(BUILDS[policy_class](directory))
    policy.add_lora(rank, alpha)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return policy


def velocity(policy, latents):
    return policy.velocity(latents, 0.6, policy.encode(PROMPTS[:2]))[0]


# FLUX's single blocks have the first three.
PUBLIC = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}


@CLASSES
def test_adapter_is_that_of_the_public_scripts(tmp_path, policy_class):
    policy = policy_class(BUILDS[policy_class](tmp_path))
    linear = {name for name, module in policy.network.named_modules() if isinstance(module, torch.nn.Linear)}
    public = {name for name in linear if name.rpartition(".attn.")[2] in PUBLIC}
    wanted = public - set(policy.family.idle(policy.network))
    policy.add_lora()
    layers = {name.removesuffix(".lora_A.default.weight"): tensor for name, tensor in policy.network.named_parameters()}
    first = {name: tensor for name, tensor in layers.items() if not name.endswith("weight") and ".lora" not in name}
    first = {name: tensor for name, tensor in first.items() if tensor.requires_grad}
    assert first.keys() == wanted
    drawn = torch.cat([tensor.flatten() for tensor in first.values()])
    assert {len(tensor) for tensor in first.values()} == {32}
    # Gaussian, of a deviation of 1 / rank: kurtosis 3, where the uniform one has 1.8.
    assert drawn.std().item() == pytest.approx(1 / 32, rel=0.05)
    assert (drawn / drawn.std()).pow(4).mean().item() == pytest.approx(3, abs=0.3)
    layer = policy.network.get_submodule(min(wanted))
    assert layer.scaling["default"] == 2
    assert not layer.lora_B["default"].weight.any()


@CLASSES
def test_adapter_starts_at_the_reference_and_leaves_it(tmp_path, policy_class):
    policy = policy_class(BUILDS[policy_class](tmp_path))
    latents = torch.randn(2, *policy.latent_shape)
    start = velocity(policy, latents)
    policy.add_lora(rank=4)
    names = {name for name, parameter in policy.network.named_parameters() if parameter.requires_grad}
    assert names
    assert all(".lora_" in name and ".attn." in name for name in names)
    assert torch.equal(velocity(policy, latents), start)

    optimizer = torch.optim.SGD(policy.parameters(), lr=10.0)
    for _ in range(2):
        with policy.reference(), torch.no_grad():
            assert torch.equal(velocity(policy, latents), start)
        velocity(policy, latents).square().mean().backward()
        optimizer.step()
    moved = {name for name, parameter in policy.network.named_parameters() if parameter.grad is not None}
    assert moved == names
    assert not torch.equal(velocity(policy, latents), start)
    with policy.reference(), torch.no_grad():
        assert torch.equal(velocity(policy, latents), start)


@CLASSES
def test_adapter_loads_in_diffusers_and_here(tmp_path, policy_class):
    policy = tuned(policy_class, tmp_path)
    latents = torch.randn(2, *policy.latent_shape)
    with torch.no_grad():
        want = velocity(policy, latents)
    policy.save_lora(tmp_path / "adapter")

    pipeline = BUILDS[policy_class](tmp_path)
    pipeline.load_lora_weights(str(tmp_path / "adapter"))
    plain = policy_class(BUILDS[policy_class](tmp_path))
    with torch.no_grad():
        assert (velocity(plain, latents) - want).abs().max() > 1e-2
        torch.testing.assert_close(velocity(policy_class(pipeline), latents), want)
        plain.load_lora(tmp_path / "adapter")
        assert torch.equal(velocity(plain, latents), want)
    assert len(plain.parameters()) == len(policy.parameters())

    policy.save(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(velocity(policy, latents), want)
        torch.testing.assert_close(velocity(load_policy(str(tmp_path / "merged"), resolution=16), latents), want)


@CLASSES
def test_adapter_of_a_sixteen_bit_network_keeps_its_precision(tmp_path, policy_class):
    pipeline = BUILDS[policy_class](tmp_path)
    pipeline.transformer.to(torch.bfloat16)
    policy = policy_class(pipeline)
    policy.add_lora(rank=4)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    latents = torch.randn(2, *policy.latent_shape)
    out = velocity(policy, latents)
    assert out.dtype == torch.float32
    out.square().mean().backward()
    assert any(parameter.grad.abs().max() > 0 for parameter in policy.parameters())

    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 1e-4  # below the grain of bfloat16 next to larger weights
    policy.save_lora(tmp_path / "adapter")
    other = BUILDS[policy_class](tmp_path)
    other.transformer.to(torch.bfloat16)
    other = policy_class(other)
    other.load_lora(tmp_path / "adapter" / "pytorch_lora_weights.safetensors")
    for mine, its in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_adapter_is_the_same_wherever_it_is_made(tmp_path):
    adapters = []
    for noise in (1, 2):
        policy = SD3Policy(sd3_pipeline(tmp_path))
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        policy.add_lora(rank=4, seed=7)
        assert torch.equal(torch.random.get_rng_state(), state)
        adapters.append(policy.parameters())
    assert all(torch.equal(first, second) for first, second in zip(*adapters, strict=True))
    assert any(first.abs().max() > 0 for first in adapters[0])


def test_a_file_without_settings_has_its_rank_for_alpha(tmp_path):
    policy = tuned(SD3Policy, tmp_path, rank=4, alpha=4.0)
    latents = torch.randn(2, *policy.latent_shape)
    policy.save_lora(tmp_path / "adapter")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "adapter/pytorch_lora_weights.safetensors"), bare)
    other = SD3Policy(sd3_pipeline(tmp_path))
    other.load_lora(bare)
    with torch.no_grad():
        assert torch.equal(velocity(other, latents), velocity(policy, latents))


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        (("attn.to_nothing",), "'attn.to_nothing', which names none"),
        (("attn.to_q", "attn.to_nothing"), "'attn.to_nothing', which names none"),
        (("proj",), "'proj', which names the Conv2d pos_embed.proj"),  # and linear layers
        (("attn.to_q", "attn"), "'attn', which names the Attention transformer_blocks.0.attn"),
        ((), r"\(\)"),
        ("attn.to_q", "'attn.to_q'"),  # letters, not a list
        ((1,), r"\(1,\)"),
    ],
)
def test_targets_are_adapted_all_of_them_or_refused(tmp_path, targets, got):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    with pytest.raises(ValueError, match=rf"add_lora: targets must be .*names of linear layers.* got {got}"):
        policy.add_lora(targets=targets)
    policy.add_lora(targets=["proj_out"])  # nothing was left behind
    assert len(policy.parameters()) == 2


def test_a_target_may_be_the_end_of_another_layers_name(tmp_path):
    """FLUX has a `proj_out` in its single blocks and one at the end; peft takes the names of a list for both."""
    policy = FluxPolicy(flux_pipeline(tmp_path))
    policy.add_lora(rank=2, targets=["single_transformer_blocks.1.proj_out", "norm_out.linear"])
    names = {name.rpartition(".lora_")[0] for name, parameter in policy.network.named_parameters() if "lora_" in name}
    assert names == {"single_transformer_blocks.1.proj_out", "norm_out.linear"}


def test_wrong_adapters_are_named(tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    with pytest.raises(ValueError, match="save_lora: policy must be one with an adapter"):
        policy.save_lora(tmp_path / "adapter")
    with pytest.raises(ValueError, match="add_lora: rank must be positive, got 0"):
        policy.add_lora(rank=0)
    with pytest.raises(ValueError, match="add_lora: alpha must be positive, got -1"):
        policy.add_lora(alpha=-1)
    with pytest.raises(ValueError, match=r"add_lora: init must be one of .*, got 'pissa'"):
        policy.add_lora(init="pissa")  # would change the weights that are the reference
    with pytest.raises(ValueError, match="load_lora: path must be a directory with"):
        policy.load_lora(tmp_path)
    tuned(FluxPolicy, tmp_path).save_lora(tmp_path / "flux")
    with pytest.raises(ValueError, match="load_lora: path must be a file that fits the network's layers, got"):
        policy.load_lora(tmp_path / "flux")
    policy.add_lora(rank=4)  # none of the failures left anything behind
    with pytest.raises(ValueError, match="add_lora: network must be without an adapter"):
        policy.add_lora(rank=4)
    with pytest.raises(ValueError, match="load_lora: network must be without an adapter"):
        policy.load_lora(tmp_path / "flux")


@pytest.mark.parametrize("loaded", [False, True], ids=["add_adapter", "load_lora_weights"])
def test_an_adapter_that_the_pipeline_has_is_trained_alone(tmp_path, loaded):
    """The weights under it are the reference, and its file knows nothing of them."""
    from peft import LoraConfig

    pipeline = sd3_pipeline(tmp_path)
    if loaded:
        tuned(SD3Policy, tmp_path).save_lora(tmp_path)
        pipeline.load_lora_weights(tmp_path)
    else:
        pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    policy = SD3Policy(pipeline)
    trained = {name for name, parameter in policy.network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in policy.network.named_parameters() if ".lora_" in name} != set()
    policy.save_lora(tmp_path / "again")
    if loaded:
        assert str(load_file(tmp_path / "again" / WEIGHTS)) == str(load_file(tmp_path / WEIGHTS))


def test_the_reference_leaves_frozen_parts_of_an_adapter_frozen(tmp_path):
    """peft makes all of an adapter trainable that it enables again, such as the fixed half of LoRA-FA."""
    policy = SD3Policy(sd3_pipeline(tmp_path))
    policy.add_lora(rank=2)
    for name, parameter in policy.network.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    wanted = {name for name, _ in policy.network.named_parameters() if "lora_B" in name}

    def trained():
        return {name for name, parameter in policy.network.named_parameters() if parameter.requires_grad}

    with policy.reference():
        assert trained() == wanted
    assert trained() == wanted != set()


def test_weights_trained_next_to_an_adapter_have_no_reference_and_no_adapter_file(tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    policy.add_lora(rank=2)
    policy.network.norm_out.linear.bias.requires_grad_(True)
    expected = r"network must be one that trains its adapter alone, got one that also trains norm_out\.linear\.bias"
    with pytest.raises(ValueError, match=f"reference: {expected}"), policy.reference():
        pass
    with pytest.raises(ValueError, match=f"save_lora: {expected}"):
        policy.save_lora(tmp_path / "adapter")
    policy.save(tmp_path / "whole")


@CLASSES
def test_an_iteration_starts_at_ratio_one_and_trains_the_adapter(tmp_path, policy_class):
    """With guidance, a network in 16 bits, and rollout and training calls of different shapes."""
    pipeline = BUILDS[policy_class](tmp_path)
    pipeline.transformer.to(torch.bfloat16)
    policy = policy_class(pipeline, (16, 24))
    policy.add_lora(rank=4)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    settings = {"num_steps": 3, "num_seeds": 1, "num_branches": 3, "num_updates": 1, "guidance_scale": 2.0, "beta": 0.1}
    config = tff.GRPOConfig(max_batch=4, micro_batch=3, **settings)
    metrics = tff.grpo_step(policy, PROMPTS[:2], brightness, optimizer, config)
    assert float(metrics["log_ratio_rms"]) == 0
    assert float(metrics["kl"]) == 0  # an adapter starts at the reference, to the bit
    assert float(metrics["grad_norm"]) > 0
    after = policy.parameters()
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
