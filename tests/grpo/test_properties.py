"""What holds whatever the numbers: invariants, the expected gradient of a linear Gaussian model, and extremes."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import pytest
import torch
from support import TESTS
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd
from torch import nn

from tempflow_fast import GRPOConfig, group_advantages, grpo_step, rollout, step_table
from tempflow_fast.grpo.update import update
from tempflow_fast.policies import Condition, NetworkPolicy

SEEDS = pytest.mark.parametrize("seed", range(12))


@SEEDS
def test_advantages_sum_to_zero_and_forget_shift_and_scale(seed):
    draw = random.Random(seed)
    shape = draw.randint(1, 6), draw.randint(1, 4), draw.randint(2, 9)
    rewards = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    exact = {"adv_eps": 0.0, "adv_clip": math.inf}
    ids = [draw.randint(0, 2) for _ in range(shape[0])]
    for group in ("seed", "prompt"):
        advantages = group_advantages(rewards, group, ids, **exact)
        scaled = group_advantages(10.0 ** draw.randint(-6, 6) * rewards + draw.uniform(-9, 9), group, ids, **exact)
        torch.testing.assert_close(scaled, advantages, rtol=1e-6, atol=1e-6)
        for prompt in set(ids):
            rows = advantages[[n for n in range(shape[0]) if ids[n] == prompt]]
            assert (rows.sum((0, 2)) if group == "prompt" else rows.sum(2)).abs().max() < 1e-10
        order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
        permuted = group_advantages(rewards[order], group, [ids[n] for n in order], **exact)
        torch.testing.assert_close(permuted, advantages[order], rtol=1e-12, atol=1e-12)


@SEEDS
def test_the_weights_of_the_branch_steps_average_one(seed):
    draw = random.Random(seed)
    num_steps = draw.randint(2, 40)
    steps = tuple(sorted(draw.sample(range(num_steps - 1), draw.randint(1, num_steps - 1))))
    sampler, level = draw.choice(["flow_sde", "dance_sde", "cps"]), draw.uniform(0.01, 0.95)
    table = step_table([1 - i / num_steps for i in range(num_steps + 1)], sampler, level, steps)
    assert table.noise_weight[list(steps)].mean().item() == pytest.approx(1, rel=1e-12)


def test_an_update_does_not_depend_on_the_order_of_trajectories():
    results = []
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        policy = TinyPolicy(torch.float64)
        noise = torch.randn(4, *policy.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        texts = [["one", "two words", "three", "four and more"][n] for n in order]
        table = step_table(policy.sigmas(4))
        drawn = rollout(policy, policy.encode(texts), table, noise[order], 3, 5, trajectory_ids=order)
        advantages = torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))[order]
        update(policy, drawn, advantages, sgd(policy), GRPOConfig(num_updates=1, beta=0.1))
        results.append(torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-13)


THREADS = """
import hashlib, torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd
from tempflow_fast import GRPOConfig, grpo_step
policy = TinyPolicy(width=512)
grpo_step(policy, PROMPTS, brightness, sgd(policy), GRPOConfig(num_steps=4, num_seeds=4, num_branches=8))
weights = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
print(torch.get_num_threads(), weights.double().abs().sum().item(), *weights[::97].tolist())
"""


def test_an_iteration_hardly_depends_on_the_number_of_threads():
    """Sums of matrix products may be taken in another order, hence not to the bit."""
    found = {}
    for count in ("1", "2"):
        surroundings = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        done = subprocess.run(
            [sys.executable, "-c", THREADS], env=surroundings, cwd=TESTS, text=True, capture_output=True, check=True
        )
        threads, *numbers = done.stdout.split()
        assert threads == count
        found[count] = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
    torch.testing.assert_close(found["1"], found["2"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_batch", [1, 3, 7, 50])
def test_results_do_not_depend_on_max_batch(max_batch):
    results = []
    for size in (None, max_batch):
        policy = TinyPolicy(torch.float64)
        config = GRPOConfig(num_steps=4, num_seeds=2, num_branches=3, max_batch=size, micro_batch=size)
        metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy), config)
        weights = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
        results.append(
            (weights, torch.stack([metrics[name].double() for name in ("loss", "grad_norm", "reward_mean")]))
        )
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)  # images, and so rewards, are in float32


class Constant(NetworkPolicy):
    """Velocity theta everywhere: every density is Gaussian, and every image linear in the noise of its branch."""

    latent_shape, dtype, device = (3, 1, 1), torch.float64, torch.device("cpu")

    def __init__(self):
        super().__init__(nn.ParameterDict({"theta": nn.Parameter(torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))}))

    def encode(self, prompts, guided=False):
        return Condition({"text": torch.zeros(len(prompts), 1, dtype=torch.float64)})

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        return self.network["theta"].view(1, 3, 1, 1).expand_as(latents).contiguous(), None

    def decode(self, latents):
        return latents

    def sigmas(self, num_steps):
        return [1 - i / num_steps for i in range(num_steps + 1)]


@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "cps"])
def test_the_expected_gradient_of_a_linear_gaussian_model_is_the_analytic_one(sampler):
    """With rewards w.x and advantages (r - mean) / eps, the noise e of a branch is all that moves its reward, by s w.e.

    The log-density is a mean over D elements, so its gradient is b e / (s D). A branch is in the mean that it is
    compared with, hence the expectation of the loss's gradient, -weight b w (1 - 1/K) / (eps D), whatever s is.
    """
    policy, num, num_branches, eps = Constant(), 4000, 4, 1e9
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    table = step_table(policy.sigmas(5), sampler, 0.6, (0, 1, 3))
    noise = torch.randn(num, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = rollout(policy, policy.encode([""] * num), table, noise, num_branches, seed=1)
    rewards = (drawn.latents.flatten(3) * weights).sum(-1)
    advantages = group_advantages(rewards, adv_eps=eps, adv_clip=math.inf)
    before = policy.network["theta"].detach().clone()
    update(policy, drawn, advantages, sgd(policy, lr=1.0), GRPOConfig(num_updates=1, max_grad_norm=math.inf))
    gradient = (before - policy.network["theta"].detach()) * eps
    steps = list(table.branch_steps)
    factor = (table.noise_weight * table.b)[steps].mean()
    expected = -factor * weights * (1 - 1 / num_branches) / 3
    # Per branch the estimate has a standard deviation of about |w| b / D; here are `num` x 4 x 3 of them.
    error = weights.norm() * factor.abs() / 3 * math.sqrt(1 / (num * num_branches))
    assert (gradient - expected).abs().max() < 4 * error
    assert (gradient - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_steps": 2, "num_branches": 2, "num_seeds": 1, "num_updates": 1},
        {"num_steps": 4, "num_branches": 2, "noise_level": 1e-15},
        {"num_steps": 4, "num_branches": 2, "noise_level": 1e-6},
        {"num_steps": 4, "num_branches": 2, "noise_level": 1e6},
        {"num_steps": 4, "num_branches": 100, "num_seeds": 1},
    ],
    ids=lambda settings: ",".join(f"{name}={value}" for name, value in settings.items()),
)
def test_extremes_give_finite_numbers(settings):
    policy = TinyPolicy()
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy), GRPOConfig(**settings))
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert metrics["skipped_updates"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 1, "num_updates": 1}, "table must be one with a branch step, got none"),
        (
            {"num_steps": 1, "branch_steps": (0,), "sampler": "cps"},
            "branch_steps must be steps where sampler 'cps' adds",
        ),
        ({"num_steps": 4, "noise_level": 1e30}, "noise_level must be small enough for float32"),
    ],
    ids=["one step", "one silent step", "noise"],
)
def test_what_cannot_be_computed_is_an_error_that_names_it(settings, message):
    policy = TinyPolicy()
    with pytest.raises(ValueError, match=message):
        grpo_step(policy, PROMPTS, brightness, sgd(policy), GRPOConfig(**settings))
