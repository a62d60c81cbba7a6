from __future__ import annotations

import itertools

import pytest
import torch

from tempflow_fast.signal.choose import best_steps, inclusion_probabilities

SNR2, COSTS = (0.020, 0.157, 0.162, 0.035, 0.008), (33, 27, 21, 15, 9)


def cost(chosen):
    """With a trunk up to the last step."""
    return sum(COSTS[i] for i in chosen) + max(chosen) + 1


def test_without_a_budget_the_best_step_per_cost():
    assert best_steps(SNR2, cost) == (2,)


@pytest.mark.parametrize("budget", [30, 40, 60, 80, 110, 1000])
def test_no_other_steps_within_the_budget_have_more_signal(budget):
    every = [c for count in range(1, 6) for c in itertools.combinations(range(5), count) if cost(c) <= budget]
    chosen = best_steps(SNR2, cost, budget)
    assert cost(chosen) <= budget
    assert sum(SNR2[i] for i in chosen) == max(sum(SNR2[i] for i in c) for c in every)


def test_a_budget_below_every_step_gets_the_best_one():
    assert best_steps(SNR2, cost, 5) == (2,)


def test_noise_below_zero_is_never_used():
    assert best_steps((-1.0, 0.1), len, budget=100) == (1,)


def test_probabilities_use_the_budget():
    probabilities = inclusion_probabilities((1.0, 4.0, 0.5), (10, 10, 2), 12.0)
    assert sum(p * c for p, c in zip(probabilities, (10, 10, 2), strict=True)) == pytest.approx(12)
    assert probabilities[1] == pytest.approx(2 * probabilities[0])


def test_no_other_probabilities_have_less_variance():
    moments, costs, budget = torch.tensor([1.0, 4.0, 0.5]), torch.tensor([10.0, 10.0, 2.0]), 9.0
    best = torch.tensor(inclusion_probabilities(moments.tolist(), costs.tolist(), budget))
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = best * (0.2 * torch.randn(3, generator=rng)).exp()
        other *= budget / (other * costs).sum()
        if (other <= 1).all():
            assert (moments / other).sum() >= (moments / best).sum()


def test_a_probability_is_at_most_one():
    assert inclusion_probabilities((1.0, 1e6), (1, 1), 1.5) == [pytest.approx(0.5), 1.0]
    assert inclusion_probabilities((1.0, 1.0), (1, 1), 100.0) == [1.0, 1.0]
    assert inclusion_probabilities((0.0, 1.0), (1, 1), 1.0) == [0.0, 1.0]
