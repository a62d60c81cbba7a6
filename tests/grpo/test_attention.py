"""Training never uses cuDNN's attention, whose gradients can be wrong; rollouts may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd
from torch import Tensor
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp
from torch.utils.checkpoint import checkpoint

from tempflow_fast import GRPOConfig, grpo_step, rollout, update
from tempflow_fast.grpo.attention import without_cudnn_attention
from tempflow_fast.grpo.sketch import Sketch
from tempflow_fast.rewards import get_reward
from tempflow_fast.signal.sample import sample

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3}


class Watched(TinyPolicy):
    """Notes whether cuDNN's attention is allowed, whenever the network runs and whenever a gradient passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.without_gradients: set[bool] = set()
        self.with_gradients: set[bool] = set()

    def velocity(self, latents: Tensor, *others: Any) -> tuple[Tensor, Tensor | None]:
        if not torch.is_grad_enabled():
            self.without_gradients.add(cudnn_sdp_enabled())
            return super().velocity(latents, *others)

        def call(latents: Tensor) -> tuple[Tensor, Tensor | None]:  # also when it is repeated for the backward pass
            self.with_gradients.add(cudnn_sdp_enabled())
            return super(Watched, self).velocity(latents, *others)

        velocity, unguided = checkpoint(call, latents, use_reentrant=False)
        velocity.register_hook(lambda gradient: self.with_gradients.add(cudnn_sdp_enabled()))
        return velocity, unguided


@pytest.fixture(params=[True, False], ids=["allowed", "forbidden"])
def usual(request):
    """What the caller has chosen, which holds again afterwards."""
    before = cudnn_sdp_enabled()
    enable_cudnn_sdp(request.param)
    yield request.param
    enable_cudnn_sdp(before)


def test_rollouts_may_use_what_the_caller_chose_and_training_may_not(usual):
    policy = Watched()
    grpo_step(policy, PROMPTS, brightness, sgd(policy), GRPOConfig(**SMALL, num_updates=1))
    assert policy.without_gradients == {usual}
    assert policy.with_gradients == {False}
    assert cudnn_sdp_enabled() is usual


def test_velocities_that_ratios_start_from_are_those_of_training():
    policy = Watched()
    config = GRPOConfig(**SMALL, num_updates=2)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    drawn = rollout(policy, policy.encode(PROMPTS), config.table(policy), noise, config.num_branches)
    policy.without_gradients.clear()
    update(policy, drawn, torch.randn(drawn.branches.shape[:3], dtype=torch.float64), sgd(policy), config)
    assert policy.without_gradients == policy.with_gradients == {False}


def test_gradients_for_the_signal_are_without_it(usual):
    policy = Watched()
    entries = [{"prompt": prompt} for prompt in PROMPTS]
    sketch = Sketch(sum(parameter.numel() for parameter in policy.parameters()))
    sample(policy, entries, get_reward(brightness), GRPOConfig(**SMALL, num_updates=1), 0, sketch)
    assert policy.with_gradients == {False}
    assert cudnn_sdp_enabled() is usual


def test_it_is_allowed_again_after_an_error(usual):
    with pytest.raises(KeyError), without_cudnn_attention():
        raise KeyError
    assert cudnn_sdp_enabled() is usual
