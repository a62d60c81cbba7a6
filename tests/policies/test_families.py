"""Every family against its own pipeline: a tiny random one of the library's classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.families import FAMILIES, MORE
from support.families.parts import without_zeros
from support.pipelines import silent

from tempflow_fast.policies import POLICIES
from tempflow_fast.policies.classes import policy_class
from tempflow_fast.policies.pipeline_calls import LONG_TEXT, SHORT_TEXT
from tempflow_fast.policies.proof import distance, prove

SQUARE, TALL = 32, (64, 32)


def policy_on(name, directory, resolution=SQUARE, **changed):
    torch.manual_seed(0)
    tiny = (FAMILIES | MORE)[name]
    pipeline = silent(tiny.build(directory))
    kind = POLICIES[type(pipeline).__name__]
    without_zeros(pipeline.transformer)
    if changed:
        kind = policy_class(replace(kind.family, **changed))
    return kind(pipeline, resolution, tiny.text_length, tiny.num_frames)


@pytest.mark.parametrize(
    ("resolution", "negative"), [(SQUARE, None), (TALL, "blurry squares")], ids=["square", "tall, negative"]
)
@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_trunk_and_pixels_are_the_pipelines(tmp_path, name, resolution, negative):
    """Two prompts of different lengths in a batch and alone, without guidance and with it, in float32."""
    changed = {} if negative is None else {"negative": negative}
    policy = policy_on(name, tmp_path, resolution, **changed)
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    frames = () if policy.calls.format.num_frames is None else (policy.calls.format.num_frames,)
    assert policy.decode(torch.zeros(1, *policy.latent_shape)).shape == (1, *frames, 3, height, width)
    latents = torch.randn(1, *policy.latent_shape)
    with torch.no_grad():
        short, long = (policy.velocity(latents, 0.5, policy.encode([text]))[0] for text in (SHORT_TEXT, LONG_TEXT))
    assert distance(short, long) > 1e-5  # a network that answers zero would agree with everything
    checks = prove(policy)
    print(name, *(f"{check.what} {check.found:.1e}" for check in checks), sep="\n    ")
    assert {check.what for check in checks if not check.matches} == set()
    assert all(check.limit <= 1e-5 for check in checks)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_output_depends_on_is_trained(tmp_path, name):
    """Data-parallel training waits for the gradient of every parameter that takes one."""
    policy = policy_on(name, tmp_path)
    latents = torch.randn(1, *policy.latent_shape)
    loss = policy.velocity(latents, 0.5, policy.encode(["a"]))[0].square().mean()
    gradients = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
    pairs = zip(policy.network.named_parameters(), policy.network.parameters(), strict=True)
    names = [name for (name, _), parameter in pairs if parameter.requires_grad]
    assert [name for name, gradient in zip(names, gradients, strict=True) if gradient is None] == []


@pytest.mark.parametrize("name", [name for name, tiny in FAMILIES.items() if tiny.loads_adapters])
def test_its_adapter_changes_the_pipelines_images_as_ours(tmp_path, name):
    policy, other = (policy_on(name, tmp_path / str(copy)) for copy in range(2))
    policy.add_lora(rank=2, alpha=4)
    policy.enable_gradient_checkpointing()
    latents, text = torch.randn(1, *policy.latent_shape), policy.encode(["a"])
    with torch.no_grad():
        before = policy.velocity(latents, 0.5, text)[0]
    policy.velocity(latents, 0.5, text)[0].square().mean().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            assert parameter.grad is not None
            parameter += 0.3 * torch.randn_like(parameter)
        after = policy.velocity(latents, 0.5, text)[0]
    policy.save_lora(tmp_path / "adapter")
    other.pipeline.load_lora_weights(str(tmp_path / "adapter"))
    with torch.no_grad():
        theirs = other.velocity(latents, 0.5, other.encode(["a"]))[0]
    assert distance(theirs, after) <= 1e-5
    assert distance(after, before) > 1e-3
