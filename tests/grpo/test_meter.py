"""Signal and noise of each branch step, measured while training."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo import meter
from tempflow_fast.grpo.draw import drawn_branches
from tempflow_fast.grpo.geometry import Geometry

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3, "branches_per_trajectory": 2}
ADAPTIVE = {**SMALL, "branch_budget": "adaptive"}
FOUR = [*PROMPTS, "a bus"]


def flat(policy):
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 2, "num_updates": 3}, {"group": "prompt", "beta": 0.1}])
def test_measuring_does_not_change_the_update(settings):
    results = []
    for own in (SMALL, ADAPTIVE):
        policy = TinyPolicy(torch.float64)
        policy.freeze_reference()
        config = GRPOConfig(**own, **settings)
        metrics = grpo_step(policy, FOUR, brightness, sgd(policy), config, seed=3)
        trained = [rows for rows, with_graph in policy.calls if with_graph]
        assert len(trained) == sum(Geometry(config, 4, seed=3).training_calls)
        results.append((flat(policy), sum(trained), metrics))
    (plain, rows, without), (measured, more_rows, metrics) = results
    torch.testing.assert_close(measured, plain, rtol=1e-11, atol=1e-13)
    assert rows == more_rows
    names = {f"{kind}_step_{step}" for kind in ("signal", "noise") for step in range(3)}
    assert metrics.keys() - without.keys() == names
    assert without.keys() <= metrics.keys()


def test_nothing_is_measured_without_a_budget(monkeypatch):
    monkeypatch.setattr(meter.StepMeter, "note", None)
    monkeypatch.setattr(meter.StepMeter, "__init__", None)
    policy = TinyPolicy()
    grpo_step(policy, PROMPTS[:1], brightness, sgd(policy), GRPOConfig(**SMALL, num_updates=1))


@pytest.mark.parametrize("group", ["seed", "prompt"])
def test_signal_and_noise_are_products_of_the_gradients_of_halves(group):
    """Each group's own gradient, by an update in which all other advantages are 0."""
    config = GRPOConfig(
        **ADAPTIVE, group=group, num_updates=1, max_grad_norm=math.inf, branch_probabilities=(1.0, 2.0, 3.0)
    )
    num, prompt_ids = 6, torch.arange(6) // 2
    branches = drawn_branches(config, num, seed=1)
    policy = TinyPolicy(torch.float64)
    noise = torch.randn(num, *policy.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    texts = [prompt for prompt in PROMPTS for _ in range(2)]
    drawn = tff.rollout(policy, policy.encode(texts), config.table(policy), noise, branches)
    rewards = brightness(drawn.flat_latents, [], []).double()
    advantages = tff.group_advantages(rewards, group, prompt_ids, branches=branches)

    def gradient(chosen):
        policy = TinyPolicy(torch.float64)
        before = flat(policy)
        own = advantages * chosen[branches.pair_of_row]
        tff.update(policy, drawn, own, sgd(policy, 1.0), GRPOConfig(**SMALL, num_updates=1, max_grad_norm=math.inf))
        return before - flat(policy)

    metrics = tff.update(policy, drawn, advantages, sgd(policy), config)
    second_half = torch.tensor([False, False, True, True, False, False])[branches.trajectories]
    # A third of the trajectories is in the second half; with prompt groups, a prompt counts as one.
    scales, sizes = (6 / 4, 6 / 2), ((2, 1) if group == "prompt" else (4, 2))
    probabilities = (1 / 3, 2 / 3, 1.0)
    for step, p in enumerate(probabilities):
        halves = [gradient((branches.steps == step) & (second_half == half)) for half in (False, True)]
        one, other = (scale * half for scale, half in zip(scales, halves, strict=True))
        signal = one @ other
        squares = [size * (half @ half - signal) + signal for size, half in zip(sizes, (one, other), strict=True)]
        assert float(metrics[f"signal_step_{step}"]) == pytest.approx(float(signal), rel=1e-3, abs=1e-6)
        second = p * sum(squares) / 2
        assert float(metrics[f"noise_step_{step}"]) == pytest.approx(float(second - signal), rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_noise_does_not_depend_on_the_draw():
    """The mean over iterations at a fixed policy, drawn rarely or always."""
    policy, found = TinyPolicy(), []
    for draw in ({"branches_per_trajectory": 1, "branch_probabilities": (1.0, 2.0)}, {"branches_per_trajectory": 2}):
        config = GRPOConfig(**{**ADAPTIVE, "num_steps": 3, "num_seeds": 3, "num_updates": 1, **draw})
        rows = [grpo_step(policy, FOUR, brightness, sgd(policy, 0.0), config, seed) for seed in range(60)]
        found.append(torch.tensor([[float(row[f"noise_step_{step}"]) for step in (0, 1)] for row in rows]))
    rare, always = found
    error = (rare.var(0) / len(rare) + always.var(0) / len(always)).sqrt()
    assert bool(((rare.mean(0) - always.mean(0)).abs() < 4 * error).all())
    assert bool((error < 0.25 * always.mean(0)).all()), "the test can tell"


def test_an_update_that_is_not_finite_is_left_out():
    policy = TinyPolicy()
    calls = []

    def spoiling(_, grads):
        calls.append(1)
        return (grads[0] * (math.nan if len(calls) == 1 else 1),)

    policy.network.register_full_backward_pre_hook(spoiling)
    metrics = grpo_step(policy, FOUR, brightness, sgd(policy), GRPOConfig(**ADAPTIVE), seed=2)
    assert metrics["skipped_updates"] == 1
    assert all(math.isfinite(metrics[f"noise_step_{step}"]) for step in range(3))


@pytest.mark.parametrize(
    ("num", "settings"), [(1, {"num_updates": 1}), (2, {"num_seeds": 1}), (3, {"num_updates": 2, "num_seeds": 1})]
)
def test_an_update_needs_two_prompts(num, settings):
    policy, config = TinyPolicy(), GRPOConfig(**{**ADAPTIVE, **settings})
    updates = config.num_updates
    message = rf'prompts must be enough for two in every update, with branch_budget "adaptive", got {num} in {updates}'
    with pytest.raises(ValueError, match=f"grpo_step: {message}"):
        grpo_step(policy, FOUR[:num], brightness, sgd(policy), config)
    with pytest.raises(ValueError, match=f"Geometry: {message}"):
        Geometry(config, num)
    assert not policy.calls
