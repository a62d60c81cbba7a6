"""The SD3 policy against diffusers' own pipeline."""

from __future__ import annotations

import pytest
import torch
from tiny import PROMPTS, sd3_pipeline

import tempflow_fast as tff
from tempflow_fast.policies import Condition, SD3Policy

NUM_STEPS = 5


def pipeline_latents(pipeline, policy, noise, guidance_scale, max_text_length, **schedule):
    """Latents after every step of the pipeline's own loop, [N, T, *shape], and its images."""
    steps = []
    images = pipeline(
        PROMPTS,
        latents=noise,
        height=policy.latent_shape[1] * pipeline.vae_scale_factor,
        width=policy.latent_shape[2] * pipeline.vae_scale_factor,
        guidance_scale=guidance_scale,
        max_sequence_length=max_text_length,
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(tensors["latents"]) or {},
        output_type="pt",
        **schedule,
    ).images
    return torch.stack(steps, dim=1), images


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize(
    ("build", "resolution"),
    [
        ({"shift": 3.0}, None),
        ({"shift": 1.0, "use_dynamic_shifting": True}, 24),
        ({"shift": 1.0, "with_t5": True}, None),
    ],
    ids=["static_shift", "dynamic_shift_other_size", "t5"],
)
def test_rollout_without_noise_is_the_pipeline(tmp_path, build, resolution, guidance_scale):
    pipeline = sd3_pipeline(tmp_path, **build)
    policy = SD3Policy(pipeline, resolution, max_text_length=9)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape)
    text_length = 9 if build.get("with_t5") else 0
    expected, images = pipeline_latents(
        pipeline, policy, noise, guidance_scale, text_length, num_inference_steps=NUM_STEPS
    )

    # Branches with next to no noise follow the trunk, so the tails are compared as well.
    table = tff.step_table(policy.sigmas(NUM_STEPS), noise_level=1e-9, branch_steps=range(NUM_STEPS))
    condition = policy.encode(PROMPTS, guided=guidance_scale != 1.0)
    drawn = tff.rollout(policy, condition, table, noise, 2, guidance_scale=guidance_scale, max_batch=8)
    size = expected.abs().max()
    assert torch.equal(drawn.states[:, 0], noise)
    assert (drawn.states[:, 1:] - expected[:, :-1]).abs().max() <= 1e-5 * size
    assert (drawn.latents - expected[:, -1, None, None]).abs().max() <= 1e-5 * size
    assert (policy.decode(drawn.latents[:, -1, 0]) - images).abs().max() <= 1e-5


def test_own_sigmas_are_those_of_the_pipeline(tmp_path):
    """A scheduler without shift takes the given sigmas as they are."""
    pipeline = sd3_pipeline(tmp_path, shift=1.0)
    policy = SD3Policy(pipeline)
    sigmas = tff.linear_sigmas(NUM_STEPS, shift=2.0)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape)
    expected, _ = pipeline_latents(pipeline, policy, noise, 1.0, 0, sigmas=sigmas[:-1])
    drawn = tff.rollout(policy, policy.encode(PROMPTS), tff.step_table(sigmas), noise, 1)
    assert (drawn.states[:, 1:] - expected[:, :-2]).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def policy(tmp_path):
    return SD3Policy(sd3_pipeline(tmp_path))


def velocity(policy, latents, sigma=0.5, guided=False):
    return policy.velocity(latents, sigma, policy.encode(PROMPTS, guided=guided), 2.0 if guided else 1.0)


def test_prompts_are_encoded_once_and_alone(policy):
    calls = []
    policy.pipeline.text_encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    together = policy.encode([*PROMPTS, PROMPTS[0]], guided=True)
    again = policy.encode(PROMPTS[:1])
    assert calls == [1, 1, 1, 1]
    assert torch.equal(again.tensors["text"][0], together.tensors["text"][3, 0])
    with pytest.raises(ValueError, match="encode: prompts must hold at least one text"):
        policy.encode([])


def test_guided_velocity_is_both_velocities(policy):
    latents = torch.randn(3, *policy.latent_shape)
    cond, uncond = velocity(policy, latents, guided=True)
    torch.testing.assert_close(cond, velocity(policy, latents)[0])
    torch.testing.assert_close(uncond, policy.velocity(latents, 0.5, policy.encode([""] * 3))[0])
    with pytest.raises(ValueError, match="condition must come from encode"):
        policy.velocity(latents, 0.5, policy.encode(PROMPTS), 2.0)


def test_every_row_takes_its_own_sigma(policy):
    latents = torch.randn(3, *policy.latent_shape)
    rows = velocity(policy, latents, torch.tensor([0.9, 0.2, 0.5]))[0]
    for row, sigma in enumerate((0.9, 0.2, 0.5)):
        torch.testing.assert_close(rows[row], velocity(policy, latents, sigma)[0][row])


def test_sixteen_bit_network_takes_and_gives_float32(tmp_path, policy):
    policy.save(tmp_path / "saved")
    narrow = SD3Policy.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    latents = torch.randn(3, *policy.latent_shape)
    got, want = velocity(narrow, latents)[0], velocity(policy, latents)[0]
    assert narrow.dtype == torch.bfloat16
    assert got.dtype == torch.float32
    assert 0 < (got - want).norm() <= 0.05 * want.norm()
    assert torch.equal(narrow.decode(latents), policy.decode(latents))


def test_reference_stays_where_training_started(policy):
    latents = torch.randn(3, *policy.latent_shape)
    with torch.no_grad():
        start = velocity(policy, latents)[0]
        with policy.reference():
            assert torch.equal(velocity(policy, latents)[0], start)
        for parameter in policy.parameters():
            parameter += 0.1
        with policy.reference():
            assert torch.equal(velocity(policy, latents)[0], start)
        with pytest.raises(ValueError, match="condition"), policy.reference():
            policy.velocity(latents, 0.5, policy.encode(PROMPTS), 2.0)
        assert not torch.equal(velocity(policy, latents)[0], start)


def test_saved_policy_loads_here_and_in_diffusers(tmp_path, policy):
    from diffusers import StableDiffusion3Pipeline

    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    policy.save(tmp_path / "saved")
    assert (tmp_path / "saved/transformer/diffusion_pytorch_model.safetensors").is_file()
    loaded = SD3Policy.from_pretrained(tmp_path / "saved", resolution=24)
    assert loaded.latent_shape == (4, 12, 12)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "saved", text_encoder_3=None, tokenizer_3=None)
    latents = torch.randn(3, *policy.latent_shape)
    for other in (loaded, SD3Policy(pipeline)):
        assert torch.equal(velocity(other, latents)[0], velocity(policy, latents)[0])


def test_loading_keeps_the_bits_of_a_single_row(tmp_path, policy):
    """One row takes kernels that round by the weights' address, so saved and loaded weights must be aligned alike."""
    policy.save(tmp_path / "saved")
    loaded = SD3Policy.from_pretrained(tmp_path / "saved")
    latents = torch.randn(1, *policy.latent_shape)
    for sigma in (0.9, 0.7, 0.2):
        arguments = (latents, sigma, policy.encode(PROMPTS[:1]))
        assert torch.equal(loaded.velocity(*arguments)[0], policy.velocity(*arguments)[0])


def test_only_the_transformer_is_trained(policy):
    trained = {id(parameter) for parameter in policy.parameters()}
    assert trained == {id(parameter) for parameter in policy.network.parameters()}
    frozen = (policy.pipeline.vae, policy.pipeline.text_encoder, policy.pipeline.text_encoder_2)
    assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters())


@pytest.mark.parametrize("resolution", [0, 18, -16])
def test_resolution_must_hold_whole_patches(tmp_path, resolution):
    with pytest.raises(ValueError, match="SD3Policy: resolution must be a positive multiple of 4 pixels, or"):
        SD3Policy(sd3_pipeline(tmp_path), resolution)


def test_condition_rows():
    condition = Condition({"text": torch.arange(6).view(3, 2), "pooled": torch.arange(3)})
    tiled = condition.tile(3)
    assert (len(condition), len(tiled)) == (3, 9)
    assert tiled.tensors["pooled"].tolist() == [0, 1, 2] * 3
    assert tiled[4:6].tensors["text"].tolist() == [[2, 3], [4, 5]]
    assert tiled[:3].tensors["text"].data_ptr() == tiled.tensors["text"].data_ptr()
    assert condition[torch.tensor([2, 0])].tensors["pooled"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="Condition: tensors must share one number of rows, got"):
        Condition({"text": torch.zeros(3, 2), "pooled": torch.zeros(2)})
