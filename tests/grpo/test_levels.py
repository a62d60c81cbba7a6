"""Levels of short tails: chosen as a plain search chooses them, at the announced cost, and applied as chosen."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step, ops
from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.grpo.levels import ChosenLevels, nearest_levels, num_choice_rows, with_levels
from tempflow_fast.grpo.tails import levels_at, uniform_positions
from tempflow_fast.processes import Processes

LEVELS = (1.0, 0.95, 0.6, 0.5, 0.2, 0.1, 0.0)
NEAREST = GRPOConfig(
    num_steps=6, sigmas=LEVELS, branch_steps=(0, 2), num_branches=3, num_seeds=1, tail_levels="nearest", tail_steps=3
)
ADAPTIVE = {"tail_steps": "adaptive", "gate_every": 1}
SEED = 5
ENTRIES = [{"prompt": prompt} for prompt in PROMPTS]


@pytest.fixture
def policy():
    return TinyPolicy(torch.float64, seed=3)


def searched(policy, step, guidance_scale):
    """The levels of tails of all lengths, by a search in plain loops over one branch after the other."""
    noise = ops.initial_noise(policy.latent_shape, SEED, torch.arange(len(PROMPTS)), policy.device)
    table = NEAREST.table(policy)
    drawn = tff.rollout(policy, policy.encode(PROMPTS), table, noise, 1, SEED, guidance_scale=guidance_scale)
    starts = drawn.branches[:, (0, 2).index(step)]

    def end(x, prompt, places):
        for here, after in pairwise(levels_at(LEVELS, [step + 1, *sorted(places), 6])):
            cond, uncond = policy.velocity(x, here, policy.encode([prompt]), guidance_scale)
            x = x + (after - here) * (cond if uncond is None else uncond + guidance_scale * (cond - uncond))
        return x

    def distance(places):
        pairs = zip(starts, PROMPTS, strict=True)
        errors = [end(x, text, places) - end(x, text, range(step + 2, 6)) for x, text in pairs]
        return float(torch.cat(errors).square().sum().sqrt())

    left, order, found = list(range(step + 2, 6)), [], [[]]
    while left:
        order.append(min(left, key=lambda place: distance([*order, place])))
        left.remove(order[-1])
        uniform = uniform_positions(step + 1, 6, len(order) + 1)
        found.append(sorted(order) if distance(order) < 0.9 * distance(uniform) else uniform)
    return found


@pytest.mark.parametrize(("max_batch", "guidance_scale"), [(None, 1.0), (4, 2.5)])
def test_levels_are_those_of_a_plain_search(policy, max_batch, guidance_scale):
    config = GRPOConfig(**{**vars(NEAREST), **ADAPTIVE, "max_batch": max_batch, "guidance_scale": guidance_scale})
    with torch.no_grad():
        want = {step: searched(policy, step, guidance_scale) for step in (0, 2)}
    policy.calls.clear()
    found = nearest_levels(config, policy, ENTRIES, SEED)
    assert found.positions == want
    kinds = {inner == uniform_positions(1, 6, len(inner) + 1) for inner in want[0][1:4]}
    assert kinds == {True, False}, "some are uniform and some are not"
    assert sum(rows for rows, _ in policy.calls) == num_choice_rows(config, len(PROMPTS))
    assert max(rows for rows, _ in policy.calls) <= (max_batch or 3 * len(PROMPTS))
    assert not any(graph for _, graph in policy.calls)
    assert ChosenLevels.from_json(found.as_json()) == found


BY_LENGTH = {0: [[], [4.0], [2.0, 4.0], [2.0, 3.5, 4.0]], 2: [[], [4.5], [4.0, 5.0]]}


def test_tails_take_the_levels_of_their_length():
    chosen = ChosenLevels(BY_LENGTH)
    applied = chosen.applied(NEAREST)
    assert applied.tail_positions == {0: (2, 4), 2: (4, 5)}
    assert applied.tail_lengths == NEAREST.tail_lengths
    other = GRPOConfig(**{**vars(NEAREST), "tail_steps": (4, 1)})
    assert chosen.applied(other).tail_positions == {0: (2, 3.5, 4), 2: ()}
    assert chosen.applied(GRPOConfig()).tail_levels == "uniform"


@pytest.mark.parametrize(
    ("positions", "fits"),
    [(BY_LENGTH, True), ({**BY_LENGTH, 0: [[], [4.0]]}, False), ({0: BY_LENGTH[0]}, False), ({}, False)],
)
def test_levels_fit_the_branch_steps_and_their_tails(positions, fits):
    assert ChosenLevels(positions).fits(NEAREST) == fits
    assert not ChosenLevels(positions).fits(GRPOConfig(**{**vars(NEAREST), **ADAPTIVE})), "these may become full"


def test_all_processes_choose_the_same(policy):
    class Other(Processes):
        def max(self, tensor):
            return tensor.flip(0)  # what another process has found decides

    assert nearest_levels(NEAREST, policy, ENTRIES, SEED, Other()) != nearest_levels(NEAREST, policy, ENTRIES, SEED)


def test_an_iteration_needs_levels_that_are_chosen(policy):
    with pytest.raises(ValueError, match=r"grpo_step: tail_levels must be 'uniform', or positions as nearest_levels\("):
        grpo_step(policy, PROMPTS, brightness, sgd(policy), NEAREST)
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy), with_levels(NEAREST, policy, ENTRIES, SEED))
    assert metrics["num_row_evaluations"] == Geometry(NEAREST, len(PROMPTS)).rollout_rows


def test_the_dry_run_counts_the_choice():
    assert num_choice_rows(NEAREST) == 16 * (3 + (5 + 3) + (5 * 2 + 4 * 3) + 3 * 2)
    assert "choosing the levels of tails takes 117 evaluations" in str(Geometry(NEAREST, 3))
    assert "choosing" not in str(Geometry(GRPOConfig(), 3))


def test_the_meter_measures_chosen_levels(policy):
    named = {"nearest": NEAREST, "positions": with_levels(NEAREST, policy, ENTRIES, SEED << 32)}
    report = tff.measure_signal(policy, PROMPTS, brightness, named, num_iterations=3, seed=SEED)
    assert report.settings[1].relative.value == pytest.approx(1)
