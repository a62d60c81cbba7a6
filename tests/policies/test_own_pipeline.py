"""A pipeline class that is not in diffusers: its policy has one line, and what it needs is named where it lacks."""

from __future__ import annotations

import pytest
import torch
from support.own_pipeline import OwnPipeline, OwnPolicy, own_pipeline

from tempflow_fast.policies import DiffusersPolicy, Family
from tempflow_fast.policies.proof import prove
from tempflow_fast.run.load import load_policy

NAMED = "support.own_pipeline:OwnPolicy"


@pytest.fixture
def pipeline(tmp_path):
    return own_pipeline(tmp_path / "tokenizer")


def test_it_is_loaded_and_reproduced(tmp_path, pipeline):
    pipeline.save_pretrained(tmp_path / "model")
    policy = load_policy(tmp_path / "model", policy=NAMED)
    assert policy.calls.described() == {
        "time": "FluxTransformer2DModel takes 1000 (1 - sigma)",
        "output": "FluxTransformer2DModel gives the negative of dx/dsigma",
        "every prompt brings": "encoder_hidden_states, pooled_projections",
        "source images": "none",
        "guidance": "guidance_scale above 0, against ''",
        "steps": "Euler's, at the noise levels of FlowMatchEulerDiscreteScheduler",
    }
    checks = prove(policy)
    assert len(checks) == 6
    assert all(check.matches for check in checks)
    policy.add_lora(rank=2, alpha=4)
    policy.save_lora(tmp_path / "lora")
    policy.pipeline.transformer.load_lora_adapter(tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors")


def test_its_size_is_in_pixels_of_its_autoencoder(pipeline):
    with pytest.raises(ValueError, match=r"OwnPolicy: resolution must be a positive multiple of 4 pixels, .* got 6"):
        OwnPolicy(pipeline, 6)


def test_a_model_of_a_class_that_diffusers_lacks_says_what_to_give(tmp_path, pipeline):
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"or given with a policy, such as module:Class, got a OwnPipeline"):
        load_policy(tmp_path / "model")


@pytest.mark.parametrize("named", ["NoPipeline", "AutoencoderKL", dict])
def test_a_row_names_a_pipeline(pipeline, named):
    class Policy(DiffusersPolicy):
        family = Family(pipeline=named)

    with pytest.raises(ValueError, match="Family: pipeline must be the name of a pipeline class in diffusers, or a "):
        Policy(pipeline)


class Elsewhere(OwnPipeline):
    def noise(self, shape, generator):
        return torch.randn(shape, generator=generator)


class Derived(OwnPipeline):
    """In another module than the one that draws the noise."""


def test_noise_from_elsewhere_is_named(pipeline):
    message = "must be one that draws its noise in prepare_latents, or by .* randn_tensor .* got a Elsewhere"
    with pytest.raises(ValueError, match=message):
        OwnPolicy(Elsewhere(**pipeline.components)).encode(["a"])


def test_latents_of_several_prompts_are_decoded_though_its_call_counts_prompts(pipeline):
    policy = OwnPolicy(pipeline)
    latents = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([policy.decode(row) for row in latents.split(1)])
    assert torch.equal(policy.decode(latents), alone)


def test_a_derived_class_is_taken(pipeline):
    assert OwnPolicy(Derived(**pipeline.components)).latent_shape == (16, 16)


def test_arguments_that_its_call_lacks_are_named(pipeline):
    class Policy(DiffusersPolicy):
        family = Family(pipeline=OwnPipeline, guidance="cfg_scale")

    message = "Policy: pipeline must be one whose __call__ takes prompt, .*, got a OwnPipeline without cfg_scale"
    with pytest.raises(ValueError, match=message):
        Policy(pipeline)
