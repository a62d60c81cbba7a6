"""The three model classes on tiny pipelines."""

from __future__ import annotations

import functools

import pytest

from support.pipelines import flux_pipeline, qwen_image_pipeline, sd3_pipeline
from support.tiny import PROMPTS
from tempflow_fast.policies import FluxPolicy, QwenImagePolicy, SD3Policy

NUM_STEPS = 4
TALL = (24, 16)
# Name -> pipeline, policy class, text length, and the pipeline's arguments for a guidance scale.
CASES = {
    "sd3": (sd3_pipeline, SD3Policy, 9, lambda scale: {"guidance_scale": scale, "max_sequence_length": 0}),
    "sd3_t5": (
        functools.partial(sd3_pipeline, shift=1.0, with_t5=True, use_dynamic_shifting=True),
        SD3Policy,
        9,
        lambda scale: {"guidance_scale": scale},
    ),
    "flux": (flux_pipeline, FluxPolicy, 9, lambda scale: {"guidance_scale": scale}),
    "flux_schnell": (
        functools.partial(flux_pipeline, guidance_embeds=False, use_dynamic_shifting=False),
        FluxPolicy,
        9,
        lambda scale: {"true_cfg_scale": scale, "negative_prompt": [""] * len(PROMPTS)},
    ),
    # Some of the texts are cut and some padded at this length; the marks of the chat around them take 129 tokens.
    "qwen_image": (
        qwen_image_pipeline,
        QwenImagePolicy,
        150,
        lambda scale: {"true_cfg_scale": scale, "negative_prompt": [" "] * len(PROMPTS)},
    ),
}
CLASSES = pytest.mark.parametrize("name", ["sd3", "flux", "qwen_image"])


def make(name, directory, resolution=None):
    build, policy_class, length, _ = CASES[name]
    return policy_class(build(directory), resolution, length)


def velocity(policy, latents, sigma=0.5, guidance_scale=1.0):
    return policy.velocity(latents, sigma, policy.encode(PROMPTS, guided=policy.guides(guidance_scale)), guidance_scale)
