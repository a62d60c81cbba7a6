"""Drawing the branch steps of each trajectory: probabilities, weights, and an expected update that does not change."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo import draw
from tempflow_fast.grpo.draw import Line, drawn_branches, possible_draws
from tempflow_fast.grpo.geometry import Geometry

SIZES = [((1.0,) * 4, 2), ((1.0, 2.0, 3.0, 4.0), 2), ((10.0, 1.0, 1.0, 0.5), 3), ((1.0, 1.0, 1.0, 1.0), 4)]


@pytest.mark.parametrize(("sizes", "num_drawn"), SIZES)
def test_probabilities_are_in_proportion_to_sizes_up_to_1(sizes, num_drawn):
    probabilities = Line.of_sizes(sizes, num_drawn).probabilities
    assert sum(probabilities) == pytest.approx(num_drawn, abs=1e-12)
    assert max(probabilities) <= 1
    ratios = [p / size for p, size in zip(probabilities, sizes, strict=True) if p < 1]
    assert all(ratio == pytest.approx(ratios[0], rel=1e-5) for ratio in ratios)


@pytest.mark.parametrize(("sizes", "num_drawn"), SIZES)
def test_all_draws_have_m_places_and_the_probabilities(sizes, num_drawn):
    line = Line.of_sizes(sizes, num_drawn)
    draws = line.possible()
    assert {len(places) for _, places in draws} == {num_drawn}
    for place, p in enumerate(line.probabilities):
        assert sum(share for share, places in draws if place in places) == pytest.approx(p, abs=1e-12)
    offsets = torch.randint(0, line.unit, (20_000,), generator=torch.Generator().manual_seed(0))
    shares = line.marked(offsets).double().mean(0)
    torch.testing.assert_close(shares, torch.tensor(line.probabilities, dtype=torch.float64), rtol=0, atol=0.02)


def gradient(config, branches, moved):
    """The gradient of one update of three trajectories, by a policy that has moved from its reference."""
    policy = TinyPolicy(torch.float64)
    policy.freeze_reference()
    for parameter in policy.parameters():
        parameter.data += moved
    noise = torch.randn(3, *policy.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = tff.rollout(policy, policy.encode(PROMPTS), config.table(policy), noise, branches)
    rewards = brightness(drawn.flat_latents, [], []).double()
    prompt_ids = torch.arange(3) // config.num_seeds
    advantages = tff.group_advantages(rewards, config.group, prompt_ids, branches=branches)
    before = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    tff.update(policy, drawn, advantages, sgd(policy, 1.0), config)
    return before - torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


@pytest.mark.parametrize("group", ["seed", "prompt"])
@pytest.mark.parametrize(("sizes", "m"), [(None, 2), ((1.0, 2.0, 3.0, 4.0), 2), ((5.0, 1.0, 1.0, 1.0), 3)])
def test_the_expected_update_is_that_of_all_branch_steps(monkeypatch, sizes, m, group):
    """Over all draws, in float64, with a KL and another K at every step."""
    settings = {"num_steps": 5, "num_branches": (3, 2, 4, 3), "beta": 0.1, "group": group, "num_seeds": 3}
    settings |= {"num_updates": 1, "max_grad_norm": math.inf}
    full = GRPOConfig(**settings)
    some = GRPOConfig(**settings, branches_per_trajectory=m, branch_probabilities=sizes)
    line, expected = Line.of_sizes(sizes or (1.0,) * 4, m), 0.0
    starts = sorted({0, *(int(end) % line.unit for end in torch.tensor(line.lengths).cumsum(0))})
    for first, end in zip(starts, [*starts[1:], line.unit], strict=True):
        word = -(-first * 2**32 // line.unit)
        with monkeypatch.context() as patch:
            patch.setattr(draw.noise, "words", lambda keys, *_, word=word: torch.full((len(keys), 2, 1), word))
            branches = drawn_branches(some, 3, seed=0)
        assert branches.num_pairs == 3 * m
        expected = expected + (end - first) / line.unit * gradient(some, branches, 1e-3)
    want = gradient(full, drawn_branches(full, 3, seed=0), 1e-3)
    torch.testing.assert_close(expected, want, rtol=1e-9, atol=1e-13)
    assert want.norm() > 1e-3


def test_a_draw_depends_on_seed_and_trajectory_alone():
    config = GRPOConfig(num_steps=10, branches_per_trajectory=3)

    def steps(num, seed):
        return drawn_branches(config, num, seed).steps.view(num, 3)

    many = steps(200, 7)
    assert torch.equal(steps(50, 7), many[:50])
    assert not torch.equal(steps(200, 8), many)
    assert many.flatten().bincount(minlength=9).min() > 200 * 3 / 9 * 0.7
    grouped = drawn_branches(GRPOConfig(num_steps=10, branches_per_trajectory=3, group="prompt"), 8, 7)
    assert torch.equal(grouped.steps.view(2, 4, 3), grouped.steps.view(2, 4, 3)[:, :1].expand(2, 4, 3))


def test_rotating_steps_take_turns_without_weights():
    config = GRPOConfig(num_steps=6, branch_steps=(4, 0, 1, 2, 3), branches_per_trajectory=2, branch_draw="rotating")
    lists = [drawn_branches(config, 3, (5 << 32) + iteration) for iteration in range(5)]
    assert [each.common_steps for each in lists] == [(0, 1), (2, 3), (0, 4), (1, 2), (3, 4)]
    assert all(bool((each.weights == 1).all()) for each in lists)


def windows(draw, iterations, prompts=2, m=2, **settings):
    """Per iteration, the steps of each prompt; they must be without weights and those of all its trajectories."""
    common = {"num_steps": 6, "num_seeds": 2, "branches_per_trajectory": m, "group": "prompt", "num_branches": 1}
    found = []
    for iteration in range(iterations):
        config = GRPOConfig(**common, branch_draw=draw, **settings)
        branches = drawn_branches(config, 2 * prompts, (5 << 32) + iteration)
        assert bool((branches.weights == 1).all())
        steps = branches.steps.view(prompts, 2, m)
        assert torch.equal(steps[:, 0], steps[:, 1])
        found.append([tuple(each) for each in steps[:, 0].tolist()])
    return found


def test_staggered_prompts_take_the_steps_one_after_the_other():
    found = windows("staggered", 5, prompts=3, m=1)
    assert [step for row in found for (step,) in row] == [0, 1, 2, 3, 4] * 3


def test_a_progressive_window_moves_on_by_one_step_and_returns():
    found = windows("progressive", 9, window_iterations=2)
    assert [row[0] for row in found] == [(0, 1)] * 2 + [(1, 2)] * 2 + [(2, 3)] * 2 + [(3, 4)] * 2 + [(0, 1)]
    assert all(row[0] == row[1] for row in found)


def test_random_windows_have_all_places_alike():
    found = [steps for row in windows("random", 100, prompts=4) for steps in row]
    counts = {steps: found.count(steps) for steps in set(found)}
    assert counts.keys() == {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert min(counts.values()) > 70  # 100 are expected
    assert windows("random", 3) == windows("random", 3)


@pytest.mark.parametrize("draw", ["rotating", "staggered", "random", "progressive"])
def test_a_geometry_knows_every_window(draw):
    config = GRPOConfig(num_steps=6, num_seeds=1, branches_per_trajectory=2, branch_draw=draw, window_iterations=1)
    possible = possible_draws(config)
    assert sum(share for share, _ in possible) == pytest.approx(1)
    seen = {tuple(drawn_branches(config, 1, seed).steps.tolist()) for seed in range(40)}
    assert seen == {tuple(sorted(places)) for _, places in possible}


@pytest.mark.parametrize(
    "settings",
    [
        *({"branch_draw": draw} for draw in ("weighted", "rotating", "staggered", "random", "progressive")),
        {"branch_probabilities": (1.0, 4.0, 2.0)},
    ],
)
def test_an_iteration_costs_what_its_draw_says(settings):
    config = GRPOConfig(
        num_steps=4, num_seeds=2, num_branches=3, branches_per_trajectory=2, max_batch=5, micro_batch=2, **settings
    )
    for seed in range(3):
        policy, images = TinyPolicy(), []
        reward = lambda drawn, *texts: images.append(len(drawn)) or brightness(drawn, *texts)  # noqa: E731,B023
        metrics = grpo_step(policy, PROMPTS, reward, sgd(policy), config, seed)
        geometry = Geometry(config, len(PROMPTS), seed=seed)
        ours = geometry.costs()[0]
        assert sum(images) == ours.images == 6 * 2 * 3
        assert metrics["num_calls"] == geometry.rollout_calls
        assert metrics["num_row_evaluations"] == ours.rollout
        assert sum(rows for rows, with_graph in policy.calls if with_graph) == ours.trained == 12
        assert len([1 for _, with_graph in policy.calls if with_graph]) == sum(geometry.training_calls)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branches_per_trajectory": 0}, "branches_per_trajectory must be in 1..3, the number of branch steps"),
        ({"branches_per_trajectory": 4}, "branches_per_trajectory must be in 1..3, .* got 4"),
        ({"branch_draw": "shuffled"}, "branch_draw must be one of"),
        ({"window_iterations": 0}, "window_iterations must be >= 1"),
        ({"branch_probabilities": (1.0, 1.0, 1.0)}, "branch_probabilities must be None without weighted draws"),
        (
            {"branches_per_trajectory": 2, "branch_probabilities": (1.0, 1.0)},
            "branch_probabilities must be one number for each of the 3 branch steps",
        ),
        (
            {"branches_per_trajectory": 2, "branch_probabilities": (1.0, 0.0, 1.0)},
            "branch_probabilities must be positive at each branch step",
        ),
        (
            {"branches_per_trajectory": 2, "branch_probabilities": (1.0, 1.0, 1.0), "branch_draw": "rotating"},
            "branch_probabilities must be None without weighted draws",
        ),
    ],
)
def test_impossible_draws_are_named(settings, message):
    with pytest.raises(ValueError, match=f"GRPOConfig: {message}"):
        GRPOConfig(num_steps=4, **settings)
