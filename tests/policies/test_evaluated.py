"""A policy that writes to its latents is refused wherever the package calls it."""

from __future__ import annotations

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast.evaluation.sample import sample_images


class Writing(TinyPolicy):
    """Correct up to call `since`, and then one that halves its latents after using them."""

    def __init__(self, since: int = 0) -> None:
        super().__init__()
        self.since = since

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        result = super().velocity(latents, sigma, condition, guidance_scale)
        if len(self.calls) > self.since:
            latents.mul_(0.5)
        return result


CONFIG = {"num_steps": 3, "num_seeds": 2, "num_updates": 1}
CASES = {
    "rollout": ({}, 0),
    "training": ({}, 3),
    "noisy trajectories": ({"trunk": "sde", "num_branches": 1, "group": "prompt"}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_an_iteration_refuses_it(case):
    changes, since = CASES[case]
    policy = Writing(since)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    with pytest.raises(ValueError, match=r"Writing\.velocity: latents must be left as they are"):
        tff.grpo_step(policy, PROMPTS, brightness, sgd(policy), tff.GRPOConfig(**CONFIG, **changes))
    assert all(torch.equal(parameter, old) for parameter, old in zip(policy.parameters(), before, strict=True))


def test_sampling_refuses_it():
    policy = Writing()
    with pytest.raises(ValueError, match=r"Writing\.velocity: latents must be left as they are"):
        sample_images(policy, PROMPTS, tff.step_table(policy.sigmas(3), "ode"), 0, 1.0, None)
