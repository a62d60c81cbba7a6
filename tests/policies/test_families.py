"""Every family against its own pipeline: a tiny random one of the library's classes."""

from __future__ import annotations

import re

import pytest
import torch
from support.families import ALL, each_family, editing, illustrated, tiny_policy

from tempflow_fast.policies.compiled import clock, compile_blocks
from tempflow_fast.policies.lora_file import WEIGHTS
from tempflow_fast.policies.pipeline_calls import LONG_TEXT, SHORT_TEXT
from tempflow_fast.policies.proof import distance, prove

SQUARE, TALL = 32, (64, 32)
LIMIT = 1e-5
"""How far a policy may be from its pipeline, in float32."""


@pytest.fixture(autouse=True)
def _small_sources(monkeypatch):
    editing.shrink_sources(monkeypatch)


@pytest.mark.parametrize(
    ("resolution", "negative"), [(SQUARE, None), (TALL, "blurry squares")], ids=["square", "tall, negative"]
)
@each_family()
def test_trunk_and_pixels_are_the_pipelines(tmp_path, name, resolution, negative):
    """Two prompts of different lengths in a batch and alone, without guidance and with it, in float32.

    Where source images are taken, theirs differ in size, and in number where several are.
    """
    changed = {} if negative is None else {"negative": negative}
    policy = illustrated(name, tmp_path, resolution=resolution, **changed)
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    frames = () if policy.calls.format.num_frames is None else (policy.calls.format.num_frames,)
    assert policy.decode(torch.zeros(1, *policy.latent_shape)).shape == (1, *frames, 3, height, width)
    latents = torch.randn(1, *policy.latent_shape)
    with torch.no_grad():
        short, long = (policy.velocity(latents, 0.5, policy.encode([text]))[0] for text in (SHORT_TEXT, LONG_TEXT))
    assert distance(short, long) > 50 * LIMIT  # a network that answers zero, or ignores the text, would always agree
    checks = prove(policy)
    print(name, *(f"{check.what} {check.found:.1e}" for check in checks), sep="\n    ")
    fewest, most = policy.num_images
    assert len(checks) == 6 * (1 + (fewest == 0 < most))
    assert {check.what for check in checks if not check.matches} == set()
    assert all(check.limit <= LIMIT for check in checks)


@each_family()
def test_the_default_size_is_the_pipelines(tmp_path, name):
    if name.startswith("qwen_image_edit"):
        pytest.skip("the pipeline makes images of the shape of their sources; all of a run have one size")
    policy = tiny_policy(name, tmp_path, None)
    arguments = policy.calls.arguments("a", 1)
    own = {key: value for key, value in arguments.items() if key not in ("height", "width")}
    assert policy.calls._probe.trace(own, 0).latents.shape[1:] == policy.latent_shape


@each_family()
def test_the_same_is_learnt_in_bf16(tmp_path, name):
    """Some pipelines round the time to the network's precision."""
    policy, half = tiny_policy(name, tmp_path), tiny_policy(name, tmp_path)
    half.pipeline.transformer.to(torch.bfloat16)
    assert half.calls.facts.time == policy.calls.facts.time
    assert half.calls.facts.slots.keys() == policy.calls.facts.slots.keys()


def untouched(policy):
    """Names of the trained parameters that a loss has no gradient for."""
    named = dict(policy.network.named_parameters())
    return [name for name, weight in named.items() if weight.requires_grad and weight.grad is None]


def predicted(policy, latents):
    return policy.velocity(latents, 0.5, policy.encode(["a"]))[0]


@each_family()
def test_what_the_output_depends_on_is_trained(tmp_path, name):
    """Data-parallel training waits for the gradient of every parameter that takes one."""
    policy = illustrated(name, tmp_path)
    predicted(policy, torch.randn(1, *policy.latent_shape)).square().mean().backward()
    assert untouched(policy) == []


@each_family()
def test_its_adapter_changes_the_pipelines_images_as_ours(tmp_path, name):
    policy, other = (illustrated(name, tmp_path) for _ in range(2))
    latents = torch.randn(1, *policy.latent_shape)
    with torch.no_grad():
        before = predicted(policy, latents)
    policy.add_lora(rank=2, alpha=4)
    policy.enable_gradient_checkpointing()
    predicted(policy, latents).square().mean().backward()
    assert untouched(policy) == []
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        after = predicted(policy, latents)
    policy.save_lora(tmp_path / "adapter")
    load_as_diffusers_does(other, tmp_path / "adapter", ALL[name].loader)
    with torch.no_grad():
        theirs = predicted(other, latents)
    assert distance(theirs, after) <= LIMIT
    assert distance(after, before) > 1e-3


def load_as_diffusers_does(policy, directory, loader):
    if loader == "pipeline":
        policy.pipeline.load_lora_weights(str(directory))
    elif loader == "transformer":
        policy.pipeline.transformer.load_lora_adapter(str(directory), weight_name=WEIGHTS)
    else:
        policy.load_lora(directory)


@each_family()
def test_an_adapter_reaches_every_block(tmp_path, name):
    """Of a network whose later blocks name their layers otherwise, a part would be left as it is."""
    policy = tiny_policy(name, tmp_path)
    policy.add_lora(rank=2, alpha=4)
    adapted = {name for name, weight in policy.network.named_parameters() if weight.requires_grad}
    assert {block for block in blocks(policy) if not any(name.startswith(f"{block}.") for name in adapted)} == set()


def blocks(policy):
    """Names of the network's blocks: those that the library says are repeated, and those that are named like blocks."""
    repeated = getattr(policy.network, "_repeated_blocks", None) or ()
    named = dict(policy.network.named_modules())
    found = {
        name
        for name, module in named.items()
        if type(module).__name__ in repeated or re.fullmatch(r"\w*(blocks|layers)\.\d+", name)
    }
    assert found
    return found


@each_family()
def test_compilation_reaches_every_block(tmp_path, name):
    policy = tiny_policy(name, tmp_path)
    compile_blocks(policy.network)
    own = {name for name, module in policy.network.named_modules() if module._compiled_call_impl is not None}
    assert {block for block in blocks(policy) if not any(f"{block}.".startswith(f"{name}.") for name in own)} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["z_image", "flux_kontext", "wan_image_to_video"])
def test_compiled_blocks_compute_the_same(tmp_path, name):
    """A network of lists, one with source images and two kinds of blocks, and one of videos; SD3 is in tests/graphs."""
    policy = illustrated(name, tmp_path)
    calls = [(torch.randn(len(texts), *policy.latent_shape), policy.encode(texts)) for texts in (["a"], ["a", "b c"])]
    with torch.no_grad():
        plain = [policy.velocity(latents, 0.5, condition)[0] for latents, condition in calls]
        compile_blocks(policy.network)
        with torch.compiler.set_stance("default", force_backend="eager"):
            before = clock.num_compilations
            compiled = [policy.velocity(latents, 0.5, condition)[0] for latents, condition in calls]
    assert clock.num_compilations > before
    assert all(map(torch.equal, plain, compiled))


def test_a_pipeline_that_draws_another_size_is_named(tmp_path):
    """Kandinsky 5 draws the nearest of the sizes that it knows, and only warns."""
    policy = tiny_policy("kandinsky5", tmp_path, 48)
    with pytest.raises(ValueError, match=r"resolution must be one that the pipeline draws, such as \(16, 16\), got"):
        policy.decode(torch.zeros(1, *policy.latent_shape))
