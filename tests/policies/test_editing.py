"""Policies whose prompts have source images, on tiny random pipelines of the library's classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import pipelines
from support.families import editing, tiny_policy
from support.families.editing import painted
from support.jsonl import write_jsonl

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.cli import main
from tempflow_fast.policies.proof import distance
from tempflow_fast.rewards import source_images


@pytest.fixture(autouse=True)
def _small_sources(monkeypatch):
    editing.shrink_sources(monkeypatch)


@pytest.mark.parametrize("name", ["flux_kontext", "qwen_image_edit_plus", "flux2", "wan_image_to_video"])
def test_velocity_depends_on_the_source_image(tmp_path, name):
    policy = tiny_policy(name, tmp_path)
    latents = torch.randn(1, *policy.latent_shape)
    images = [(painted(tmp_path, seed, seed=seed),) for seed in (1, 2)]
    with torch.no_grad():
        one, other, again = (
            policy.velocity(latents, 0.5, policy.encode(["a"], images=[row]))[0] for row in (*images, images[0])
        )
    assert distance(one, other) > 1e-5
    assert torch.equal(one, again)


def entries(directory, count=2):
    """Prompts about images, the second of another size."""
    sizes = [(64, 64), (96, 64)]
    return [
        {"prompt": f"make it {number}", "image": painted(directory, number, sizes[number % 2], number)}
        for number in range(count)
    ]


@pytest.mark.parametrize("name", ["flux_kontext", "qwen_image_edit_plus", "wan_image_to_video"])
def test_an_iteration_trains_an_adapter_that_diffusers_loads(tmp_path, name):
    policy, other = (tiny_policy(name, tmp_path) for _ in range(2))
    policy.add_lora(rank=2, alpha=4)
    policy.enable_gradient_checkpointing()
    asked, seen = entries(tmp_path), []

    def likeness(images, prompts, metadata):
        seen.extend(len(row) for row in source_images(metadata))
        return -images.flatten(1).mean(1)

    config = GRPOConfig(num_steps=3, num_branches=2, num_seeds=1, num_updates=1, guidance_scale=2.0, max_batch=3)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    before = [weight.clone() for weight in policy.parameters()]
    metrics = grpo_step(policy, [e["prompt"] for e in asked], likeness, optimizer, config, metadata=asked)
    assert set(seen) == {1}
    assert metrics["log_ratio_rms"] == 0
    assert torch.isfinite(torch.as_tensor(metrics["loss"]))
    assert any(not torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))
    for weight in policy.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    policy.save_lora(tmp_path / "adapter")
    latents, images = torch.randn(1, *policy.latent_shape), [(asked[0]["image"],)]

    @torch.no_grad()
    def velocity(of):
        return of.velocity(latents, 0.5, of.encode(["a"], images=images))[0]

    without = velocity(other)
    other.pipeline.load_lora_weights(str(tmp_path / "adapter"))
    apart = distance(velocity(other), velocity(policy))
    assert 50 * apart < distance(without, velocity(policy)), "the adapter hardly counts"
    assert apart <= 1e-5


def test_one_text_with_another_image_is_encoded_again(tmp_path):
    policy, (one, two) = tiny_policy("flux_kontext", tmp_path), entries(tmp_path)
    asked = []
    own = policy.calls.encode
    policy.calls.encode = lambda prompts: asked.append(len(prompts)) or own(prompts)
    policy.encode(["a", "a", "a"], images=[(one["image"],), (two["image"],), (one["image"],)])
    policy.encode(["a"], images=[(two["image"],)])
    painted(tmp_path, 1, (64, 64), seed=7)  # the file has changed
    policy.encode(["a"], images=[(two["image"],)])
    assert asked == [2, 0, 1]


def test_an_image_encoder_runs_for_prompts_alone(tmp_path):
    """Not for decoding, for which it may wait in host memory, nor for noise levels, once the pipeline is known."""
    policy, seen, source = tiny_policy("wan_image_to_video", tmp_path), [], (painted(tmp_path, "source"),)
    latents = torch.randn(1, *policy.latent_shape)
    condition, own = policy.encode(["a"], images=[source]), policy.sigmas(2)
    policy.pipeline.image_encoder.register_forward_pre_hook(lambda *args: seen.append(1))
    with torch.no_grad():
        policy.velocity(latents, own[0], condition)
    assert (len(policy.sigmas(3)), len(policy.decode(latents)), seen) == (4, 1, [])
    policy.encode(["b"], images=[source])
    assert seen == [1]


def test_images_of_one_size_are_one_call(tmp_path):
    """A network call per size costs; equal sizes cost nothing."""
    policy = tiny_policy("flux_kontext", tmp_path)
    paths = [painted(tmp_path, number, size, number) for number, size in enumerate([(80, 64), (80, 64), (160, 128)])]
    alike = [(path,) for path in paths]
    assert num_calls(policy, alike) == 1
    assert num_calls(policy, [*alike, (painted(tmp_path, "tall", (64, 128)),), alike[0]]) == 2


def test_source_images_of_several_sizes_are_refused_where_fsdp_shards_the_network(tmp_path):
    policy = tiny_policy("flux_kontext", tmp_path)
    whole = type(policy.network)
    policy.network.__class__ = type("FSDPFlux", (type("FSDPModule", (), {}), whole), {})  # as FSDP2 does it
    images = [(painted(tmp_path, name, size),) for name, size in (("wide", (128, 64)), ("tall", (64, 128)))]
    with torch.no_grad():
        assert num_calls(policy, images[:1] * 2) == 1
        with pytest.raises(ValueError, match=r"condition must be about source images of one size .* got 2 different"):
            num_calls(policy, images)


def num_calls(policy, images):
    """Of the network, for a velocity of prompts with these images."""
    condition, calls = policy.encode(["a"] * len(images), images=images), []
    hook = policy.network.register_forward_pre_hook(lambda *args: calls.append(1))
    policy.velocity(torch.randn(len(images), *policy.latent_shape), 0.5, condition)
    hook.remove()
    return len(calls)


def test_encodings_serve_another_policy_of_the_same_format_alone(tmp_path):
    policy, twin, larger = (tiny_policy("flux_kontext", tmp_path, size) for size in (32, 32, (64, 32)))
    images = [(painted(tmp_path, name, size),) for name, size in (("wide", (128, 64)), ("tall", (64, 128)))]
    condition, latents = policy.encode(["a", "b"], images=images), torch.randn(2, *policy.latent_shape)
    twin.encode(["a"], images=images[1:])  # which it meets first
    with torch.no_grad():
        ours, theirs = (each.velocity(latents, 0.5, condition)[0] for each in (policy, twin))
    assert torch.equal(ours, theirs)
    kind = "one encoded for a FluxKontextPipeline of"
    message = f"velocity: condition must be {kind} 64 x 32 pixels on cpu, got {kind} 32 x 32 pixels on cpu"
    with pytest.raises(ValueError, match=message):
        larger.velocity(torch.randn(2, *larger.latent_shape), 0.5, condition)
    with pytest.raises(ValueError, match="condition must be one encoded with source images, got one without"):
        policy.velocity(latents, 0.5, replace(condition, kinds=None))


@pytest.mark.parametrize(("name", "images"), [("flux_kontext", []), ("flux_kontext", 2), ("qwen_image_edit_plus", 4)])
def test_another_number_of_images_is_refused(tmp_path, name, images):
    policy = tiny_policy(name, tmp_path)
    paths = (painted(tmp_path, "a"),) * (images or 0)
    with pytest.raises(ValueError, match=r"encode: image must be that of .* source images? per prompt"):
        policy.encode(["a"], images=[paths])


@pytest.mark.slow
def test_a_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    """train, resume, eval and sample with a model directory and prompts in a file."""
    monkeypatch.chdir(tmp_path)
    pipelines.silent(editing.flux_kontext(tmp_path / "tokenizer")).save_pretrained("model")
    write_jsonl(tmp_path / "edits.jsonl", entries(tmp_path, 4))
    (tmp_path / "bluish.py").write_text(
        "from tempflow_fast.rewards import source_images\n"
        "def bluer(images, prompts, metadata):\n"
        "    assert all(len(row) == 1 for row in source_images(metadata))\n"
        "    return images[:, 2].mean((1, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    size = ["--resolution", "32", "--num-steps", "3", "--num-branches", "2", "--num-seeds", "1", "--eval-steps", "2"]
    options = ["--model", "model", "--prompts", "edits.jsonl", "--reward", "bluish:bluer", "--device", "cpu", *size]
    assert main(["train", *options, "--dry-run", "--output", "none"]) == 0
    with_source = capsys.readouterr().out
    assert main(["train", *options, "--num-iterations", "1", "--output", "out"]) == 0
    assert main(["train", *options, "--num-iterations", "2", "--output", "out"]) == 0
    assert (tmp_path / "out/lora/pytorch_lora_weights.safetensors").is_file()
    drawn = ["--prompt", "bluer", "--count", "1", "--output", "x.png"]
    assert main(["sample", "--weights", "out", "--image", "0.png", *drawn]) == 0
    assert main(["check-model", "model", "--resolution", "32"]) == 0
    assert "with source images" in capsys.readouterr().out
    assert "fits 24 GB" in with_source
    few = ["--resolution", "32", "--steps", "2", "--device", "cpu"]
    scored = ["eval", "--model", "model", "--prompts", "edits.jsonl", "--rewards", "bluish:bluer", *few]
    assert main([*scored, "--directory", "before"]) == 0
    assert main([*scored, "--directory", "after", "--compare", "before"]) == 0
    assert "| overall | 4 | 0.000 (0.000 to 0.000) |" in capsys.readouterr().out
    painted(tmp_path, 1, (64, 64), seed=99)  # another image under the same name
    for more in (["--directory", "before"], ["--directory", "third", "--compare", "before"]):
        assert main([*scored, *more]) == 2
        assert "metadata must be the" in capsys.readouterr().err
