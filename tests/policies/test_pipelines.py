"""The policies of the three model classes against diffusers' own pipelines."""

from __future__ import annotations

import pytest
import torch
from support.pipelines import sd3_pipeline
from support.policies import CASES, CLASSES, NUM_STEPS, TALL, make, velocity
from support.tiny import PROMPTS

import tempflow_fast as tff
from tempflow_fast.policies import SD3Policy
from tempflow_fast.run.load import load_policy


def pipeline_latents(policy, noise, **arguments):
    """Latents after every step of the pipeline's own loop, [N, T, *shape], and its images."""
    pipeline, steps = policy.pipeline, []
    images = pipeline(
        PROMPTS,
        latents=noise,
        height=policy.calls.format.height,
        width=policy.calls.format.width,
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(tensors["latents"]) or {},
        output_type="pt",
        **{"max_sequence_length": policy.max_text_length, **arguments},
    ).images
    return torch.stack(steps, dim=1), images


# To the pipelines 0 is "off" (schnell, turbo), and so is every scale up to 1; to embedded guidance every scale is one.
SCALES = {None: (0.0, 0.5, 1.0, 1.0 + 1e-6, 3.5, 7.0), TALL: (1.0, 3.5)}


@pytest.mark.parametrize(("resolution", "guidance_scale"), [(size, scale) for size in SCALES for scale in SCALES[size]])
@pytest.mark.parametrize("name", CASES)
def test_rollout_without_noise_is_the_pipeline(tmp_path, name, resolution, guidance_scale):
    policy = make(name, tmp_path, resolution)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape)
    arguments = CASES[name][3](guidance_scale)
    expected, images = pipeline_latents(policy, noise, num_inference_steps=NUM_STEPS, **arguments)
    assert images.shape[2:] == (resolution or (16, 16))

    # Branches with next to no noise follow the trunk, so the tails are compared as well.
    table = tff.step_table(policy.sigmas(NUM_STEPS), noise_level=1e-9, branch_steps=range(NUM_STEPS))
    condition = policy.encode(PROMPTS, guided=policy.guides(guidance_scale))
    drawn = tff.rollout(policy, condition, table, noise, 2, guidance_scale=guidance_scale, max_batch=8)
    size = expected.abs().max()
    assert torch.equal(policy.decode(expected[:, -1]), images)
    assert torch.equal(drawn.states[:, 0], noise)
    trunk = (drawn.states[:, 1:] - expected[:, :-1]).abs().max() / size
    finished = (drawn.latents - expected[:, -1, None, None]).abs().max() / size
    pixels = (policy.decode(drawn.latents[:, -1, 0]) - images).abs().max()
    print(f"\n{name} {resolution} guidance {guidance_scale}: latents {max(trunk, finished):.1e}, pixels {pixels:.1e}")
    assert max(trunk, finished, pixels) <= 1e-5


def test_own_sigmas_are_those_of_the_pipeline(tmp_path):
    """A scheduler without shift takes the given sigmas as they are."""
    policy = SD3Policy(sd3_pipeline(tmp_path, shift=1.0))
    sigmas = tff.linear_sigmas(NUM_STEPS, shift=2.0)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape)
    expected, _ = pipeline_latents(policy, noise, guidance_scale=1.0, max_sequence_length=0, sigmas=sigmas[:-1])
    drawn = tff.rollout(policy, policy.encode(PROMPTS), tff.step_table(sigmas), noise, 1)
    assert (drawn.states[:, 1:] - expected[:, :-2]).abs().max() <= 1e-5 * expected.abs().max()


@CLASSES
def test_saved_policy_loads_here_and_in_diffusers(tmp_path, name):
    policy = make(name, tmp_path)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    policy.save(tmp_path / "saved")
    assert (tmp_path / "saved/transformer/diffusion_pytorch_model.safetensors").is_file()
    loaded = load_policy(str(tmp_path / "saved"), resolution=16, max_text_length=policy.max_text_length)
    assert type(loaded) is type(policy)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3" else {}
    pipeline = type(policy.pipeline).from_pretrained(tmp_path / "saved", **absent)
    latents = torch.randn(3, *policy.latent_shape)
    for other in (loaded, type(policy)(pipeline, 16, policy.max_text_length)):
        assert torch.equal(velocity(other, latents)[0], velocity(policy, latents)[0])
    # One row takes kernels that round by the weights' address, so saved and loaded weights must be aligned alike.
    for sigma in (0.9, 0.7, 0.2):
        arguments = (latents[:1], sigma, policy.encode(PROMPTS[:1]))
        assert torch.equal(loaded.velocity(*arguments)[0], policy.velocity(*arguments)[0])

    want = velocity(policy, latents)[0]
    for dtype, near in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        narrow = load_policy(str(tmp_path / "saved"), "cpu", dtype, 16, policy.max_text_length)
        got = velocity(narrow, latents)[0]
        assert (narrow.dtype, got.dtype) == (dtype, torch.float32)
        assert 0 < (got - want).norm() <= near * want.norm()
    images = policy.decode(latents)
    assert torch.equal(narrow.decode(latents), images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(policy.decode(latents), images)
