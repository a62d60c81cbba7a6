"""Networks whose training would be wrong without a word are refused before any call."""

from __future__ import annotations

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd
from torch import nn

from tempflow_fast import GRPOConfig, grpo_step, measure_signal

CONFIG = GRPOConfig(num_steps=3, num_seeds=2, num_branches=2, num_updates=2, beta=0.1)
CALLS = pytest.mark.parametrize(
    "call",
    [
        lambda policy: grpo_step(policy, PROMPTS, brightness, sgd(policy, lr=0.0), CONFIG),
        lambda policy: measure_signal(policy, PROMPTS, brightness, CONFIG),
    ],
    ids=["grpo_step", "measure_signal"],
)


@CALLS
def test_gradients_that_would_vanish_are_refused(call):
    policy = TinyPolicy(torch.float16)
    with pytest.raises(ValueError, match=r": policy must be of float32 or bfloat16, .* got one of float16"):
        call(policy)
    assert not policy.calls


@CALLS
@pytest.mark.parametrize("module", [nn.Dropout(0.1), nn.BatchNorm1d(12), nn.MultiheadAttention(12, 1, 0.1)])
def test_a_velocity_that_varies_from_call_to_call_is_refused(call, module):
    policy = TinyPolicy()
    policy.network.append(module.train())
    expected = rf"policy\.network must be in evaluation mode .* training mode with the {type(module).__name__} '3'"
    with pytest.raises(ValueError, match=expected):
        call(policy)
    assert not policy.calls


def test_evaluation_mode_makes_the_ratio_one():
    policy = TinyPolicy()
    policy.network.append(nn.Dropout(0.5))
    policy.network.eval()
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy, lr=0.0), CONFIG)
    assert metrics["log_ratio_rms"] == metrics["clip_fraction"] == metrics["kl"] == 0 < metrics["grad_norm"]


def test_training_mode_is_accepted_where_it_changes_nothing():
    policy = TinyPolicy()
    policy.network.append(nn.Dropout(0.0))
    policy.network.train()
    assert grpo_step(policy, PROMPTS, brightness, sgd(policy), CONFIG)["grad_norm"] > 0
