"""Files of adapters: applied as a whole, as diffusers applies them, or refused by name."""

from __future__ import annotations

import json
import re

import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.pipelines import flux_pipeline, sd3_pipeline
from support.tiny import PROMPTS

from tempflow_fast.policies import FluxPolicy, SD3Policy

NAME = "pytorch_lora_weights.safetensors"
LAYER = "transformer_blocks.0.attn.to_q"
TARGETS = ["attn.to_q", "attn.to_k", "proj_out"]


def velocity(policy):
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.velocity(latents, 0.6, policy.encode(PROMPTS[:2]))[0]


def stored(build, directory, **settings):
    """A file of an adapter that is not at its start, written as diffusers' own scripts do."""
    pipeline = build(directory)
    config = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": False} | settings
    torch.manual_seed(1)
    pipeline.transformer.add_adapter(LoraConfig(**config))
    pipeline.save_lora_weights(
        directory / "adapter",
        transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer),
        **_collate_lora_metadata({"transformer": pipeline.transformer}),
    )
    return directory / "adapter" / NAME


def changed(file, tensors=None, **settings):
    """The same file with other tensors or settings."""
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["lora_adapter_metadata"])
    header |= {f"transformer.{name}": value for name, value in settings.items()}
    kept = {name: tensor.clone() for name, tensor in (load_file(file) if tensors is None else tensors).items()}
    save_file(kept, file, {"lora_adapter_metadata": json.dumps(header)})
    return file


SCALES = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"attn.to_q": 2}, "alpha_pattern": {"to_k": 1, "^proj_out": 30}},
    "all": {"use_rslora": True, "rank_pattern": {r".*blocks\.1\..*to_q": 7}, "alpha_pattern": {LAYER: 40}},
}


@pytest.mark.parametrize("settings", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize(("build", "policy_class"), [(sd3_pipeline, SD3Policy), (flux_pipeline, FluxPolicy)])
def test_every_scale_is_that_of_diffusers(tmp_path, build, policy_class, settings):
    file = stored(build, tmp_path, **settings)
    theirs = build(tmp_path)
    theirs.load_lora_weights(file.parent)
    want, ours = velocity(policy_class(theirs)), policy_class(build(tmp_path))
    assert (velocity(ours) - want).abs().max() > 1e-2
    ours.load_lora(file)
    torch.testing.assert_close(velocity(ours), want)

    ours.save_lora(tmp_path / "again")
    again, theirs = policy_class(build(tmp_path)), build(tmp_path)
    again.load_lora(tmp_path / "again")
    theirs.load_lora_weights(tmp_path / "again")
    assert torch.equal(velocity(again), velocity(ours))
    torch.testing.assert_close(velocity(policy_class(theirs)), want)
    for mine, its in zip(ours.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_an_adapter_of_mixed_ranks_without_settings_has_its_ranks_for_alpha(tmp_path):
    file = stored(sd3_pipeline, tmp_path, rank_pattern={"attn.to_q": 2})
    save_file(load_file(file), file)
    theirs, ours = sd3_pipeline(tmp_path), SD3Policy(sd3_pipeline(tmp_path))
    theirs.load_lora_weights(file.parent)
    ours.load_lora(file)
    torch.testing.assert_close(velocity(ours), velocity(SD3Policy(theirs)))
    assert "LoRA of rank 2 to 4, alpha 2 to 4" in repr(ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_adapter_in_16_bits_is_trained_in_float32(tmp_path, dtype):
    file = stored(sd3_pipeline, tmp_path)
    narrow = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    policy = SD3Policy(sd3_pipeline(tmp_path))
    policy.load_lora(changed(file, narrow))
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    parameters = dict(policy.network.named_parameters())
    assert torch.equal(
        parameters[f"{LAYER}.lora_A.default.weight"], narrow[f"transformer.{LAYER}.lora_A.weight"].float()
    )


REFUSED = {
    "use_dora": True,
    "bias": "all",
    "lora_bias": True,
    "modules_to_save": ["proj_out"],
    "fan_in_fan_out": True,
    "init_lora_weights": "pissa",
    "layer_replication": [[0, 1]],
    "use_qalora": True,
    "target_parameters": ["weight"],
    "trainable_token_indices": [1],
    "peft_setting_of_tomorrow": 3,
}


@pytest.fixture
def file(tmp_path):
    return stored(sd3_pipeline, tmp_path)


def refuses(tmp_path, file, message):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    with pytest.raises(ValueError, match=rf"load_lora: path must be {message}") as caught:
        policy.load_lora(file)
    assert "\n" not in str(caught.value)
    assert "adapter=None" in repr(policy)


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_would_not_be_applied_are_named(tmp_path, file, name):
    changed(file, **{name: REFUSED[name]})
    refuses(tmp_path, file, rf"a file whose adapter follows rank and alpha alone, without {name}, got .*{NAME}")


WRONG = {
    "lora_alpha": (-1, "a file with a positive alpha at .*, got .* with -1"),
    "r": (8, "a file with rank 8 at .*, got .* with 4"),
    "rank_pattern": ({"attn.to_q": 3}, "a file with rank 3 at .*to_q, got .* with 4"),
    "alpha_pattern": (["to_q"], "a file whose alpha_pattern maps expressions to numbers"),
    "target_modules": ([*TARGETS, "attn.to_v"], "a file with all its layers, got .* without attn.to_v"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_do_not_fit_the_weights_are_named(tmp_path, file, name):
    value, message = WRONG[name]
    refuses(tmp_path, changed(file, **{name: value}), message)


A, B = f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight"
ELSEWHERE = "a file in diffusers' layout that adapts the transformer alone, got .* with "
TENSORS = {
    "text encoder": (lambda t: t | {f"text_encoder.{A}": t[A]}, ELSEWHERE + "text_encoder"),
    "kohya": (lambda t: {"lora_unet_attn.lora_down.weight": t[A]}, ELSEWHERE + "lora_unet"),
    "peft": (lambda t: {f"base_model.model.{A}": t[A]}, ELSEWHERE + "base_model"),
    "alpha tensor": (lambda t: t | {f"transformer.{LAYER}.alpha": torch.ones(1)}, "a file that fits .* with .*alpha"),
    "dora": (lambda t: t | {f"transformer.{LAYER}.lora_magnitude_vector": torch.ones(16)}, "a file that fits .*magnit"),
    "no such layer": (lambda t: t | {A.replace("0", "9"): t[A], B.replace("0", "9"): t[B]}, "a file that fits .*9"),
    "convolution": (lambda t: t | {A.replace(LAYER, "pos_embed.proj"): t[A]}, "a file that fits .*pos_embed"),
    "other width": (lambda t: t | {A: torch.ones(4, 17)}, r"a file that fits .*lora_A.weight \[4, 17\]"),
    "other adapter": (lambda t: t | {A.replace("lora_A", "lora_A.second"): t[A]}, "a file that fits .*second"),
    "one matrix": (lambda t: {name: x for name, x in t.items() if name != B}, "a file with both matrices .*lora_B"),
    "integers": (lambda t: t | {A: t[A].to(torch.int8)}, "a file of finite numbers, got .* in torch.int8"),
    "not finite": (lambda t: t | {B: t[B] / 0}, "a file of finite numbers, got .*lora_B"),
    "nothing": (lambda t: {}, "a file with a LoRA in diffusers' layout, got .* without any tensor"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_weights_that_would_not_be_applied_are_named(tmp_path, file, name):
    change, message = TENSORS[name]
    refuses(tmp_path, changed(file, change(load_file(file))), message)


def pickled(file):
    torch.save({"weight": torch.ones(3)}, file)


FILES = {
    "a pickle": pickled,
    "a text": lambda file: file.write_text("lora\n" * 99),
    "a Git LFS": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"),
    "which is empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-1]),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_safetensors_file_is_named(tmp_path, file, kind):
    FILES[kind](file)
    refuses(tmp_path, file.parent, rf"a safetensors file, got '{re.escape(str(file))}', {kind}")


def test_settings_that_are_no_json_are_named(tmp_path, file):
    for text in ("{", "[1]"):
        save_file(load_file(file), file, {"lora_adapter_metadata": text})
        refuses(tmp_path, file, "a file with JSON settings in lora_adapter_metadata")
