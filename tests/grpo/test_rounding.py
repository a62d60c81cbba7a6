"""Trained weights of 16 bits are named, once."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo import rounding

CONFIG = GRPOConfig(num_steps=3, num_seeds=2, num_branches=2)


@pytest.fixture(autouse=True)
def fresh():
    rounding._warn.cache_clear()


def said(policy: TinyPolicy, steps: int = 2) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for seed in range(steps):
            grpo_step(policy, PROMPTS, brightness, sgd(policy), CONFIG, seed)
    return [str(each.message) for each in found]


def test_coarse_weights_are_named_once():
    (text,) = said(TinyPolicy(torch.bfloat16))
    assert text.startswith("0.weight and 3 other parameters are trained in bfloat16, where a change of less")
    assert "1/256 of a weight" in text


def test_the_share_is_what_rounds_away():
    """At most that part of a weight, and not a tenth more."""
    for dtype, share in ((torch.bfloat16, 256), (torch.float16, 2048)):
        one = torch.ones((), dtype=dtype)
        assert one + 0.99 / share == one
        assert one + 1.1 / share > one


def test_frozen_coarse_weights_next_to_trained_fine_ones_are_as_they_should_be():
    policy = TinyPolicy(torch.bfloat16)
    policy.network[0].requires_grad_(False)
    policy.network[2].to(torch.float32)
    rounding.warn_of_rounding(policy)
    assert rounding._warn.cache_info().currsize == 0
    assert said(TinyPolicy()) == []
