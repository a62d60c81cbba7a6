"""A model class that the package does not know takes a row: AuraFlow, loaded, trained and saved."""

from __future__ import annotations

import pytest
import torch
from support.pipelines import TEXT_DIM, clip_tokenizer, silent, t5, vae
from support.runs import little_run

from tempflow_fast import rollout, step_table
from tempflow_fast.policies import POLICIES, DiffusersPolicy, Family
from tempflow_fast.run.load import load_policy

PROMPTS = ["a red circle", "two squares"]


class AuraFlowPolicy(DiffusersPolicy):
    """What the file would hold."""

    family = Family(pipeline="AuraFlowPipeline", text_length=256)


@pytest.fixture
def model(tmp_path, monkeypatch):
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(tmp_path / "tokenizer")
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    pipeline = AuraFlowPipeline(tokenizer, t5(tokenizer), vae(), transformer, scheduler)
    pipeline.save_pretrained(tmp_path / "model")
    monkeypatch.setitem(POLICIES, "AuraFlowPipeline", AuraFlowPolicy)
    return str(tmp_path / "model")


@pytest.mark.parametrize("resolution", [16, (24, 16)], ids=["square", "tall"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
def test_its_rollout_is_its_pipeline(model, resolution, guidance_scale):
    policy = load_policy(model, resolution=resolution, max_text_length=9)
    noise, size = torch.randn(2, *policy.latent_shape), policy.calls.format
    images = silent(policy.pipeline)(
        PROMPTS,
        negative_prompt=["", ""],
        latents=noise,
        **size.arguments,
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        max_sequence_length=9,
        output_type="pt",
    ).images
    table = step_table(policy.sigmas(3), noise_level=1e-9, branch_steps=range(3))
    condition = policy.encode(PROMPTS, guided=policy.guides(guidance_scale))
    latents = rollout(policy, condition, table, noise, 2, guidance_scale=guidance_scale).latents
    assert (policy.decode(latents[:, -1, 0]) - images).abs().max() <= 1e-5


@pytest.mark.slow
def test_it_trains_an_adapter_that_loads(model, tmp_path):
    settings = {"model": model, "resolution": 16, "max_text_length": 9, "sigmas": None, "num_steps": 3, "lora_rank": 2}
    run = little_run(
        tmp_path / "run",
        **settings,
        num_iterations=2,
        learning_rate=0.1,
        adam_eps=1e-8,
        reward="support.tiny:brightness",
        accuracy=None,
    )
    plain, ours, theirs = (load_policy(model, resolution=16, max_text_length=9) for _ in range(3))
    ours.load_lora(run.lora)
    theirs.pipeline.load_lora_weights(str(run.lora))
    noise, text = torch.randn(2, *plain.latent_shape), plain.encode(PROMPTS)
    with torch.no_grad():
        before, after, loaded = (policy.velocity(noise, 0.5, text)[0] for policy in (plain, ours, theirs))
    torch.testing.assert_close(loaded, after)
    assert (after - before).abs().max() > 1e-3
