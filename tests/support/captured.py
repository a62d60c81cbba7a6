"""Rollouts with and without graphs, and how to compare them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

import tempflow_fast as tff
from support.tiny import PROMPTS

FIELDS = ("states", "branches", "log_prob", "latents")


def draw(policy, graphs, iteration=0, guidance_scale=4.5, max_batch=5, steps=4, prompts=PROMPTS, **table):
    """A rollout whose noise, ids, seed, schedule and texts are those of `iteration`."""
    schedule = [sigma ** (1 + 0.1 * iteration) for sigma in policy.sigmas(steps)]
    table = tff.step_table(schedule, noise_level=0.7 + 0.1 * iteration, **table)
    condition = policy.encode(prompts, guided=policy.guides(guidance_scale))
    changed = {name: part + 0.1 * iteration for name, part in condition.tensors.items() if part.is_floating_point()}
    condition = replace(condition, tensors={**condition.tensors, **changed})
    ids = torch.arange(len(prompts)) + 100 * iteration
    noise = tff.ops.initial_noise(policy.latent_shape, iteration, ids)
    return tff.rollout(policy, condition, table, noise, 3, iteration, ids, max_batch, guidance_scale, graphs)


def assert_equal(got, want):
    for field in FIELDS:
        assert torch.equal(getattr(got, field), getattr(want, field)), field
    assert got.latents.isfinite().all()


def nudge(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))


def expect_eager(policy, graphs, reason, **options):
    """Three rollouts without a graph, equal to plain ones, with one warning in all."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for iteration in range(3):
            assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
    assert [str(warning.message) for warning in caught if "CUDA graphs" in str(warning.message)] == [
        f"rollout: network calls run without CUDA graphs: {reason}"
    ]
