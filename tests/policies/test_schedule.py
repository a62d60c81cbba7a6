"""The noise levels of a pipeline's scheduler, and the schedulers that are refused."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from support.families.parts import FLOW
from support.pipelines import flux_pipeline, qwen_image_pipeline, sd3_pipeline
from support.tiny import PROMPTS

import tempflow_fast as tff
from tempflow_fast.evaluation.sample import sample_images
from tempflow_fast.policies import FluxPolicy, QwenImagePolicy, SD3Policy
from tempflow_fast.policies.proof import prove
from tempflow_fast.policies.schedule import FLOWS

SETTINGS = [
    {"shift": 1.18},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"shift_terminal": 0.1},
    {"use_dynamic_shifting": True, "base_shift": 0.1, "max_shift": 2.0, "max_image_seq_len": 1024},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
]
FAMILIES = pytest.mark.parametrize(
    ("policy_class", "build"),
    [(SD3Policy, sd3_pipeline), (FluxPolicy, flux_pipeline), (QwenImagePolicy, qwen_image_pipeline)],
    ids=["sd3", "flux", "qwen_image"],
)


def pipeline_call(policy, noise, num_steps):
    """Images of the pipeline's own loop, without guidance."""
    scale = {} if isinstance(policy, QwenImagePolicy) else {"guidance_scale": 1.0}
    length = 0 if isinstance(policy, SD3Policy) else policy.max_text_length
    size = {"height": 16, "width": 16, "num_inference_steps": num_steps, "output_type": "pt"}
    return policy.pipeline(PROMPTS, latents=noise, max_sequence_length=length, **size, **scale).images


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
@FAMILIES
def test_every_schedule_of_the_euler_scheduler_is_the_pipelines(tmp_path, policy_class, build, settings):
    pipeline = build(tmp_path)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    policy = policy_class(pipeline, 16, 150 if build is qwen_image_pipeline else 9)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape)
    want = pipeline_call(policy, noise, 3)
    assert policy.sigmas(3) == pipeline.scheduler.sigmas.tolist()
    drawn = tff.rollout(policy, policy.encode(PROMPTS), tff.step_table(policy.sigmas(3), noise_level=1e-9), noise, 1)
    assert (policy.decode(drawn.latents[:, -1, 0]) - want).abs().max() <= 1e-5


def test_a_shift_that_was_set_counts(tmp_path):
    pipeline = sd3_pipeline(tmp_path)
    policy, before = SD3Policy(pipeline), SD3Policy(pipeline).sigmas(3)
    pipeline.scheduler.set_shift(6.0)
    assert policy.sigmas(3) != before
    pipeline.scheduler.set_timesteps(3)
    assert policy.sigmas(3) == pipeline.scheduler.sigmas.tolist()


REFUSED = [
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "LCMScheduler",
]


@pytest.mark.parametrize("name", REFUSED)
@FAMILIES
def test_other_rules_are_refused_by_name(tmp_path, policy_class, build, name):
    pipeline = build(tmp_path)
    policy = policy_class(pipeline)
    pipeline.scheduler = getattr(diffusers, name)()
    message = rf"{policy_class.__name__}: pipeline.scheduler must be .*(FlowMatchEuler|use_flow_sigmas).* got {name}"
    with pytest.raises(ValueError, match=message):
        policy_class(pipeline)
    with pytest.raises(ValueError, match=message):
        policy.sigmas(3)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)  # as docs/policies.md says
    assert sample_images(policy_class(pipeline), PROMPTS[:1], tff.step_table(policy.sigmas(2))).isfinite().all()


@pytest.mark.parametrize("name", FLOWS)
def test_levels_of_a_flow_are_kept_and_stepped_by_eulers_rule(tmp_path, name):
    pipeline = sd3_pipeline(tmp_path)
    pipeline.scheduler = getattr(diffusers, name)(**FLOW)
    policy = SD3Policy(pipeline, 16, 9)
    assert [check.what for check in prove(policy, 5) if not check.matches] == []
    pipeline.scheduler.set_timesteps(5)
    assert policy.sigmas(5) == pipeline.scheduler.sigmas.tolist()
    assert policy.calls.described()["steps"] == f"Euler's, at the noise levels of {name}"


def test_a_flow_with_noise_is_refused(tmp_path):
    pipeline = sd3_pipeline(tmp_path)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++")
    with pytest.raises(ValueError, match=r"must be one without noise, got .* with sde-dpmsolver\+\+"):
        SD3Policy(pipeline)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stochastic_sampling": True}, "stochastic_sampling=False, got FlowMatchEulerDiscreteScheduler with True"),
        ({"invert_sigmas": True}, "invert_sigmas=False"),
        ({"num_train_timesteps": 500}, "num_train_timesteps=1000"),
        ({"use_dynamic_shifting": True, "max_shift": None}, "a number as max_shift, got None"),
        ({"use_dynamic_shifting": True, "base_image_seq_len": "256"}, "a number as base_image_seq_len, got '256'"),
    ],
)
def test_settings_that_change_the_rule_are_refused_by_name(tmp_path, settings, expected):
    pipeline = sd3_pipeline(tmp_path)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    with pytest.raises(ValueError, match=rf"SD3Policy: pipeline.scheduler must be one with {expected}"):
        SD3Policy(pipeline)


def test_a_scheduler_with_a_step_of_its_own_is_refused(tmp_path):
    class Churned(FlowMatchEulerDiscreteScheduler):
        def step(self, *args, **kwargs):
            return super().step(*args, s_churn=1.0, **kwargs)

    pipeline = sd3_pipeline(tmp_path)
    pipeline.scheduler = Churned()
    with pytest.raises(ValueError, match="got Churned"):
        SD3Policy(pipeline)
