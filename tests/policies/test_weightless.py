"""Models from configuration files alone: published sizes, and the same estimate as with weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support.policies import CLASSES, make

from tempflow_fast import GRPOConfig
from tempflow_fast.grpo.measure import measure
from tempflow_fast.policies.weightless import PUBLISHED, WeightlessPolicy, is_known, model_configs
from tempflow_fast.run.prepare import load_of, weightless_policy
from tempflow_fast.settings.recipes import get_recipe

BILLIONS = {
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 2.24, "text_encoder_3": 4.76, "text_encoder_2": 0.695},
    "stabilityai/stable-diffusion-3.5-large": {"transformer": 8.06, "vae": 0.0838},
    "black-forest-labs/FLUX.1-dev": {"transformer": 11.9, "text_encoder": 0.123},
    "Qwen/Qwen-Image": {"transformer": 20.4, "text_encoder": 8.29, "vae": 0.127},
    "black-forest-labs/FLUX.2-dev": {"transformer": 32.2, "text_encoder": 24.0, "vae": 0.0840},
    "black-forest-labs/FLUX.2-klein-base-4B": {"transformer": 3.88, "text_encoder": 4.02},
    "Tongyi-MAI/Z-Image": {"transformer": 6.15, "text_encoder": 4.02, "vae": 0.0838},
}


@pytest.mark.parametrize("model", BILLIONS)
def test_published_models_have_their_published_sizes(model):
    policy = WeightlessPolicy(model_configs(model), torch.bfloat16)
    for name, expected in BILLIONS[model].items():
        size = sum(weight.numel() for weight in policy.pipeline.components[name].parameters())
        assert size / 1e9 == pytest.approx(expected, rel=0.01), name
    assert not any(weight.device.type != "meta" for weight in policy.network.parameters())


def test_all_published_models_are_known():
    published = json.loads(PUBLISHED.read_text())
    assert set(published) == set(BILLIONS)
    assert all(map(is_known, published.values()))
    assert model_configs("owner/no-such-model") is None


@pytest.mark.slow
@CLASSES
def test_estimates_are_those_of_the_model_itself(tmp_path, name):
    """But for the prompt's tokens, which are fewer than the most where texts are not padded."""
    policy = make(name, tmp_path / "files")
    policy.save(tmp_path / "model")
    for file in (tmp_path / "model").rglob("*.safetensors"):
        file.unlink()
    weightless = WeightlessPolicy(model_configs(tmp_path / "model"), torch.float32, 16, policy.max_text_length)
    weightless.take_for_cpu()
    config = GRPOConfig(num_steps=4, guidance_scale=2.0)
    own, real = measure(weightless, config), measure(policy, config)
    for part in ("network", "encoders", "autoencoder", "optimizer", "gradients", "latent", "image", "velocities"):
        assert getattr(own, part) == getattr(real, part), part
    if own.text == real.text:
        for call in ("training", "rollout", "decoding"):
            assert getattr(own, call).of(100) == pytest.approx(getattr(real, call).of(100), rel=0.1), call


@pytest.mark.slow
def test_an_iteration_of_sd35_medium_keeps_less_than_a_gibibyte_beside_its_calls():
    """1296 images at 512 px in one process: latents, texts and waiting images; all images alone would be 3.8 GiB."""
    recipe = get_recipe("sd35m-geneval").with_settings(prompts_per_iteration=6, num_iterations=1, decode_batch=4)
    policy = weightless_policy(recipe.policy)
    policy.take_for_cpu()
    memory = measure(policy, recipe.grpo, recipe.optimizer, recipe.policy)
    load = load_of(recipe, 1)
    assert load.images == 1296
    calls = memory.decoding.of(load.decoded_rows)
    assert memory.stages(load)["decode"] - calls <= 2**30
    at_once = replace(load, decoded_rows=1296)
    assert memory.stages(at_once)["decode"] - memory.decoding.of(1296) > 4 * 2**30


def test_operations_are_those_of_the_products():
    """A network of one matrix product per token would take 2 operations a weight; blocks with attention take more."""
    policy = WeightlessPolicy(model_configs("stabilityai/stable-diffusion-3.5-medium"), torch.bfloat16, 512)
    guided, image = policy.operations(4.5)
    plain, _ = policy.operations(1.0)
    assert guided == pytest.approx(2 * plain, rel=0.01)
    assert 2e12 < plain < 8e12
    assert image == pytest.approx(2.5e12, rel=0.1)


@pytest.mark.parametrize("model", ["black-forest-labs/FLUX.2-klein-base-4B"])
def test_source_images_lengthen_the_calls(model):
    """One of a million pixels has as many tokens as a result of 1024 x 1024."""
    costs, texts = [], []
    for number in (0, 1, 2):
        policy = WeightlessPolicy(model_configs(model), torch.bfloat16, 1024)
        policy.num_sources = number
        costs.append(policy.operations(1.0)[0])
        texts.append(sum(part.nbytes for part in policy.encode([""]).tensors.values()))
    assert 2 < costs[1] / costs[0] < 2.5
    assert costs[2] - costs[1] > costs[1] - costs[0]  # attention to all of them
    assert texts[1] - texts[0] == texts[2] - texts[1] == 2 * 4096 * 128
