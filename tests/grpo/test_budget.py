"""Probabilities of branch steps that follow what is measured."""

from __future__ import annotations

import json
import math
from itertools import product
from operator import mul

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo.budget import FLOOR, BranchBudget, allotted, branch_range, most_branches
from tempflow_fast.grpo.draw import draw_line
from tempflow_fast.grpo.geometry import Geometry

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3, "branches_per_trajectory": 1, "branch_budget": "adaptive"}
# Tails of 3, 2 and 1 calls for three branches each, and three passes of the training row.
COSTS = (3 * 3 + 3, 3 * 2 + 3, 3 * 1 + 3)


def probabilities(config):
    return draw_line(config, config.branches_per_trajectory).probabilities


def measured(*seconds, signal=0.0):
    rows = {f"noise_step_{step}": second - signal for step, second in enumerate(seconds)}
    return rows | {f"signal_step_{step}": signal for step in range(len(seconds))}


def noted(config, *rows, times=1):
    budget = BranchBudget()
    for row in rows:
        for _ in range(times):
            budget.note(config, row)
    return budget


class OneStep(TinyPolicy):
    """A policy whose weights have an effect at one step alone, so that the others have no gradient."""

    step = 1

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        velocity, none = super().velocity(latents, sigma, condition, guidance_scale)
        here = torch.as_tensor(sigma).expand(len(latents)) == torch.tensor(self.sigmas(4)[self.step])
        return torch.where(here.view(-1, 1, 1, 1), velocity, velocity.detach()), none


def test_probabilities_move_to_the_one_step_with_signal():
    policy, budget = OneStep(), BranchBudget()
    config = GRPOConfig(**SMALL, budget_memory=5)
    for seed in range(20):
        now = budget.applied(config)
        metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy, 1e-3), now, seed)
        budget.note(now, metrics)
    assert probabilities(config) == pytest.approx((1 / 3,) * 3)
    assert probabilities(budget.applied(config)) == pytest.approx((FLOOR / 3, 1 - FLOOR * 2 / 3, FLOOR / 3), rel=1e-4)


@pytest.mark.parametrize("signal", [0.0, 0.5])
def test_they_give_the_least_variance_for_the_cost(signal):
    config = GRPOConfig(**SMALL)
    budget = noted(config, measured(9.0, 24.0, 3.0, signal=signal), times=1000)
    wishes = [math.sqrt(second / cost) for second, cost in zip((9, 24, 3), COSTS, strict=True)]
    want = [FLOOR / 3 + (1 - FLOOR) * wish / sum(wishes) for wish in wishes]
    assert probabilities(budget.applied(config)) == pytest.approx(want, rel=1e-4)


def test_the_first_measurements_move_them_little():
    config = GRPOConfig(**SMALL, branch_probabilities=(1.0, 1.0, 2.0))
    budget = noted(config, measured(1.0, 0.0, 0.0))
    share = math.exp(-1 / 20)
    assert probabilities(budget.applied(config)) == pytest.approx(
        (1 - share + share / 4, share / 4, share / 2), rel=1e-4
    )
    assert BranchBudget().applied(config) is config


def test_old_measurements_are_forgotten():
    config = GRPOConfig(**SMALL, budget_memory=10)
    budget = noted(config, measured(1.0, 0.0, 0.0), measured(0.0, 1.0, 0.0), times=30)
    assert budget.moments == pytest.approx({0: 3 * math.exp(-3) * (1 - math.exp(-3)) / (1 - math.exp(-6)),
                                            1: 3 * (1 - math.exp(-3)) / (1 - math.exp(-6)), 2: 0.0})  # fmt: skip


def test_what_is_not_finite_or_never_measured_moves_nothing():
    config = GRPOConfig(**SMALL)
    budget = noted(config, measured(1.0, 2.0, 3.0))
    before = budget.as_json()
    budget.note(config, measured(math.nan, 2.0, 3.0))
    assert budget.as_json() == before
    assert probabilities(noted(config, measured(0.0, 0.0, 0.0)).applied(config)) == pytest.approx((1 / 3,) * 3)
    other = GRPOConfig(**{**SMALL, "num_steps": 5})
    assert budget.applied(other) is other, "measured at other steps"


def test_a_table_with_steps_that_have_no_branches():
    config = GRPOConfig(**{**SMALL, "num_branches": (3, 0, 3), "branch_steps": (2, 1, 0)})
    budget = BranchBudget(1000, {0: 0.0, 2: 1.0})
    assert probabilities(budget.applied(config)) == pytest.approx((FLOOR / 2, 1 - FLOOR / 2))


def test_a_budget_that_was_saved_is_the_same():
    budget = noted(GRPOConfig(**SMALL), measured(0.1, 1 / 3, 3e-20))
    assert BranchBudget.from_json(budget.as_json()) == budget


def test_without_a_budget_nothing_is_noted():
    config = GRPOConfig(**{**SMALL, "branch_budget": None})
    budget = noted(config, {})
    assert budget == BranchBudget()
    assert BranchBudget(5, {0: 1.0, 1: 2.0, 2: 3.0}).applied(config) is config


def test_the_page_has_the_range_of_costs():
    config = GRPOConfig(**SMALL)
    (line,) = [line for line in str(Geometry(config, 2)).splitlines() if "later ones" in line]
    low, high = FLOOR / 3, 1 - FLOOR * 2 / 3
    costs = [first * (1 + 9) + low * (2 + 6) + last * (3 + 3) for first, last in ((low, high), (high, low))]
    assert f"about {min(costs):.4g} to {max(costs):.4g} evaluations" in line


COUNTS = {"num_steps": 4, "num_seeds": 2, "num_branches": 6, "branch_budget": "adaptive", "budget_memory": 5}


def counts(budget, config):
    return dict(budget.applied(config).branch_counts)


def test_branches_are_allotted_in_proportion_to_the_root_of_moment_per_cost():
    """Against all tables of integers within the budget."""
    moments, costs, ranges, budget = [9.0, 30.0, 20.0], [8, 2, 1], [(2, 30)] * 3, 100
    tables = [table for table in product(range(2, 31), repeat=3) if sum(map(mul, table, costs)) <= budget]
    best = min(sum(m / k for m, k in zip(moments, table, strict=True)) for table in tables)
    found = allotted(moments, costs, ranges, budget)
    assert sum(map(mul, found, costs)) <= budget
    assert sum(m / k for m, k in zip(moments, found, strict=True)) == pytest.approx(best, rel=0.02)
    assert allotted([0.0, 0.0, 5.0], costs, ranges, budget)[2] == 30


def test_counts_follow_what_is_measured_within_the_cost_at_the_start():
    config = GRPOConfig(**COUNTS)
    budget = noted(config, measured(0.1, 0.1, 9.0), times=4)
    assert budget.applied(config) is config, "too few measurements"
    budget.note(config, measured(0.1, 0.1, 9.0))
    found = counts(budget, config)
    assert found[2] == 12
    assert min(found.values()) >= 3
    assert sum(count * cost for count, cost in zip(found.values(), (3, 2, 1), strict=True)) <= 6 * (3 + 2 + 1)


def test_counts_stay_where_others_would_save_little():
    config = GRPOConfig(**COUNTS)
    assert noted(config, measured(3.1, 2.0, 1.0), times=20).applied(config) is config


def test_what_is_measured_does_not_depend_on_the_counts_in_use():
    config = GRPOConfig(**COUNTS)
    budget = noted(config, measured(0.1, 0.1, 9.0), times=5)
    used, moments = counts(budget, config), dict(budget.moments)
    scaled = [second * 6 / used[step] for step, second in enumerate((0.1, 0.1, 9.0))]
    budget.note(config, measured(*scaled))
    assert budget.moments == pytest.approx(moments)


def test_the_most_images_that_an_iteration_may_have():
    """Tails of 3, 2 and 1 calls: the short ones take the branches of the long ones."""
    config = GRPOConfig(**COUNTS)
    assert most_branches(config) == [3, 7, 12]
    everything = product(*(range(low, high + 1) for low, high in [branch_range(6)] * 3))
    assert sum(most_branches(config)) == max(sum(t) for t in everything if sum(map(mul, t, (3, 2, 1))) <= 36)
    assert most_branches(GRPOConfig(**SMALL)) == [3, 3, 3]


def test_longer_tails_do_not_exceed_the_budget():
    config = GRPOConfig(**COUNTS, tail_steps=1)
    budget = noted(config, measured(9.0, 0.1, 0.1), times=5)
    assert counts(budget, config)[0] > 6
    longer = GRPOConfig(**COUNTS)
    budget.note(longer, measured(4.5, 0.2, 0.2))
    found = counts(budget, longer)
    assert sum(count * cost for count, cost in zip(found.values(), (3, 2, 1), strict=True)) <= 6 * (3 + 2 + 1)


def test_iterations_with_their_own_counts():
    config = GRPOConfig(**{**COUNTS, "budget_memory": 2}, num_updates=1)
    policy, budget = OneStep(), BranchBudget()
    for seed in range(4):
        now = budget.applied(config)
        metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy, 1e-3), now, seed)
        assert int(metrics["num_row_evaluations"]) == Geometry(now, len(PROMPTS)).rollout_rows
        budget.note(config, metrics)
    assert counts(budget, config)[1] > 6, "the one step with a gradient"
    assert BranchBudget.from_json(json.loads(json.dumps(budget.as_json()))) == budget


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branch_draw": "rotating"}, "branch_budget must be None with rotating steps"),
        (
            {"branches_per_trajectory": None, "trunk": "sde", "num_branches": 1, "group": "prompt"},
            'branch_budget must be None with rotating steps, and with trunk "sde"',
        ),
        ({"branch_budget": "fixed"}, "branch_budget must be one of"),
        ({"budget_memory": 0.0}, "budget_memory must be positive and finite"),
        ({"budget_memory": math.inf}, "budget_memory must be positive and finite"),
    ],
)
def test_impossible_budgets_are_named(settings, message):
    with pytest.raises(ValueError, match=f"GRPOConfig: {message}"):
        GRPOConfig(**{**SMALL, **settings})
