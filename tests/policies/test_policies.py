"""What the policies of all diffusers pipelines have in common."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.pipelines import sd3_pipeline
from support.policies import CLASSES, NUM_STEPS, make, velocity
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo.measure import measure
from tempflow_fast.policies import Condition, NetworkPolicy, SD3Policy
from tempflow_fast.run.load import load_policy

TEXT = "encoder_hidden_states"


@CLASSES
def test_prompts_are_encoded_once_and_alone(tmp_path, name):
    policy, calls = make(name, tmp_path), []
    policy.encode(["learns what the network is called with"], guided=True)
    policy.pipeline.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    together = policy.encode([*PROMPTS, PROMPTS[0]], guided=True)
    again = policy.encode(PROMPTS[:1])
    assert calls == [1] * 3
    text = together.tensors[TEXT][3] if name == "flux" else together.tensors[TEXT][3, 0]  # its guidance is embedded
    assert torch.equal(again.tensors[TEXT][0], text[: again.tensors[TEXT].shape[1]])
    with pytest.raises(ValueError, match="encode: prompts must be at least one text, got none"):
        policy.encode([])


@pytest.mark.parametrize("name", ["sd3", "flux_schnell"])
def test_guided_velocity_is_both_velocities(tmp_path, name):
    policy = make(name, tmp_path)
    latents = torch.randn(3, *policy.latent_shape)
    cond, uncond = velocity(policy, latents, guidance_scale=2.0)
    torch.testing.assert_close(cond, velocity(policy, latents)[0])
    torch.testing.assert_close(uncond, policy.velocity(latents, 0.5, policy.encode([""] * 3))[0])
    guided_condition = policy.encode(PROMPTS, guided=True)
    torch.testing.assert_close(policy.velocity(latents, 0.5, guided_condition)[0], velocity(policy, latents)[0])
    with pytest.raises(ValueError, match="velocity: condition must be from encode"):
        policy.velocity(latents, 0.5, policy.encode(PROMPTS), 2.0)


def test_a_model_with_its_own_guidance_returns_it_finished(tmp_path):
    for name in ("flux", "qwen_image"):
        policy = make(name, tmp_path)
        latents = torch.randn(3, *policy.latent_shape)
        plain, (guided, uncond) = velocity(policy, latents)[0], velocity(policy, latents, guidance_scale=3.0)
        assert uncond is None
        assert (guided - plain).abs().max() > 1e-3
    torch.testing.assert_close(guided.norm(dim=-1), plain.norm(dim=-1))


@CLASSES
def test_every_row_takes_its_own_sigma(tmp_path, name):
    policy = make(name, tmp_path)
    latents = torch.randn(3, *policy.latent_shape)
    rows = velocity(policy, latents, torch.tensor([0.9, 0.2, 0.5]))[0]
    for row, sigma in enumerate((0.9, 0.2, 0.5)):
        torch.testing.assert_close(rows[row], velocity(policy, latents, sigma)[0][row])


@pytest.fixture
def policy(tmp_path):
    return make("sd3", tmp_path)


def test_reference_stays_where_training_started(policy):
    latents = torch.randn(3, *policy.latent_shape)
    with torch.no_grad():
        start = velocity(policy, latents)[0]
        policy.freeze_reference()
        for parameter in policy.parameters():
            parameter += 0.1
        policy.freeze_reference()
        with policy.reference():
            assert torch.equal(velocity(policy, latents)[0], start)
        with pytest.raises(ValueError, match="condition"), policy.reference():
            policy.velocity(latents, 0.5, policy.encode(PROMPTS), 2.0)
        assert not torch.equal(velocity(policy, latents)[0], start)


def test_a_velocity_that_passes_by_the_frozen_network_is_refused():
    """Else the KL would be that of the policy to itself, 0 however far training has gone."""

    class PassingBy(TinyPolicy):
        @property
        def acting(self):
            return self.network

    policy, config = PassingBy(), GRPOConfig(num_steps=3, num_seeds=2, num_branches=2, beta=0.1)
    with pytest.raises(ValueError, match=r"reference: policy must .* calls self\.acting, .* self\.network"):
        grpo_step(policy, PROMPTS, brightness, sgd(policy), config)
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy), dataclasses.replace(config, beta=0.0))
    assert metrics["grad_norm"] > 0


def test_another_module_can_take_the_place_of_the_network(policy):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.num_calls = module, 0

        def forward(self, **inputs):
            self.num_calls += 1
            return self.module(**inputs)

    latents, before = torch.randn(3, *policy.latent_shape), policy.parameters()
    start = velocity(policy, latents)[0]
    policy.network = Wrapper(policy.network)
    assert torch.equal(velocity(policy, latents)[0], start)
    assert policy.network.num_calls == 1
    assert [id(parameter) for parameter in policy.parameters()] == [id(parameter) for parameter in before]


@CLASSES
def test_what_the_output_depends_on_is_trained(tmp_path, name):
    """Data-parallel training waits for the gradient of every parameter that takes one."""
    policy = make(name, tmp_path)
    trained = {id(parameter) for parameter in policy.parameters()}
    transformer = policy.pipeline.transformer.requires_grad_(True)
    loss = velocity(policy, torch.randn(3, *policy.latent_shape))[0].square().mean()
    gradients = torch.autograd.grad(loss, list(transformer.parameters()), allow_unused=True)
    pairs = zip(transformer.parameters(), gradients, strict=True)
    assert trained == {id(parameter) for parameter, gradient in pairs if gradient is not None}
    frozen = [policy.pipeline.vae, *policy._encoders]
    assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters())


@CLASSES
def test_gradient_checkpointing_gives_the_same_gradients(tmp_path, name):
    policy, gradients, calls = make(name, tmp_path), [], []
    latents = torch.randn(3, *policy.latent_shape)
    policy.network.transformer_blocks[0].register_forward_pre_hook(lambda *args: calls.append(1))
    for _ in range(2):
        loss = velocity(policy, latents, guidance_scale=2.0)[0].square().mean()
        gradients.append(torch.autograd.grad(loss, policy.parameters()))
        policy.enable_gradient_checkpointing()
    assert len(calls) == 3  # the second backward pass ran the block again
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
@CLASSES
def test_measuring_memory_leaves_the_policy_as_it_is(tmp_path, name):
    """Nothing that a policy or a network keeps between calls may come from the measurement's tensors without data."""
    policy = make(name, tmp_path)
    measure(policy, tff.GRPOConfig(num_steps=NUM_STEPS, guidance_scale=2.0))
    latents = torch.randn(3, *policy.latent_shape)
    assert torch.equal(velocity(policy, latents)[0], velocity(make(name, tmp_path), latents)[0])


def test_printing_a_policy_says_what_it_trains(policy):
    total = sum(parameter.numel() for parameter in policy.network.parameters())
    where = "latent_shape=(4, 8, 8), dtype=torch.float32, device=cpu"
    assert repr(policy) == f"SD3Policy(parameters={total:,}, trained={total:,}, {where}, adapter=None)"
    policy.add_lora(rank=2, alpha=6, targets=["attn.to_q"])
    trained = sum(parameter.numel() for parameter in policy.parameters())
    parameters = f"parameters={total + trained:,}, trained={trained:,}"
    assert repr(policy) == f"SD3Policy({parameters}, {where}, adapter=LoRA of rank 2, alpha 6, on 2 layers)"
    assert repr(NetworkPolicy(torch.nn.Linear(2, 3))).startswith("NetworkPolicy(parameters=9, trained=9, ")


def test_settings_that_do_not_fit_are_named(tmp_path):
    pipeline = sd3_pipeline(tmp_path)
    for resolution in (0, 18, -16, (16, 18), (16, 16, 16)):
        with pytest.raises(ValueError, match="SD3Policy: resolution must be a positive multiple of 4 pixels, or"):
            SD3Policy(pipeline, resolution)
    with pytest.raises(ValueError, match="SD3Policy: resolution must be at most 64 pixels a side"):
        SD3Policy(pipeline, (16, 68))
    with pytest.raises(ValueError, match=r"SD3Policy: max_text_length must be in 1..512, got 513"):
        SD3Policy(pipeline, max_text_length=513)
    (tmp_path / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    with pytest.raises(ValueError, match=r"load_policy: model must be one of AuraFlowPipeline, .* got a OtherPipeline"):
        load_policy(str(tmp_path))


def test_prompts_are_a_list(policy):
    with pytest.raises(ValueError, match="encode: prompts must be a list of texts, got 'a red circle'"):
        policy.encode("a red circle")


def test_condition_rows():
    condition = Condition({"text": torch.arange(6).view(3, 2), "pooled": torch.arange(3)})
    assert len(condition) == 3
    assert condition[1:].tensors["text"].tolist() == [[2, 3], [4, 5]]
    assert condition[:2].tensors["text"].data_ptr() == condition.tensors["text"].data_ptr()
    assert condition[torch.tensor([2, 0])].tensors["pooled"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="Condition: tensors must be of the same length, got"):
        Condition({"text": torch.zeros(3, 2), "pooled": torch.zeros(2)})
