"""Signal and cost of branch steps -> which of them to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import require
from ..grpo.budget import least_variance


def best_steps(
    snr2: Sequence[float], cost: Callable[[Sequence[int]], float], budget: float | None = None
) -> tuple[int, ...]:
    """The branch steps to use: the most signal within a budget, or per cost.

    Gradients of different branch steps of one trajectory are nearly uncorrelated, so their snr2 add up. Steps are taken
    in the order of snr2 per cost of each alone.

    Args:
        snr2: of each branch step alone; noise can make it negative, and such a step is never used.
        cost: positions of some steps -> what they cost together, with what they share, such as the trunk.
        budget: the most that they may cost; None: the one step with the most signal per cost, since more trajectories
            are then better than more steps.

    Returns:
        Positions of the chosen steps, ascending; the best one alone where even that exceeds the budget.
    """
    require(len(snr2) > 0, "best_steps", "snr2", "one number for each step, at least 1", "none")
    best, *others = sorted(range(len(snr2)), key=lambda i: snr2[i] / cost([i]), reverse=True)
    chosen = [best]
    for i in others:
        if budget is not None and snr2[i] > 0 and cost([*chosen, i]) <= budget:
            chosen.append(i)
    return tuple(sorted(chosen))


def inclusion_probabilities(second_moments: Sequence[float], costs: Sequence[float], budget: float) -> list[float]:
    """Probabilities with which to branch at each step, so that a budget gives the least variance.

    They are in proportion to `least_variance`, capped at 1.

    Args:
        second_moments: E |g|^2 of each step.
        costs: c, per step and trajectory.
        budget: the expected cost of a trajectory.

    Returns:
        One probability in [0, 1] per step; a step whose gradient is always 0 gets 0.
    """
    require(budget > 0, "inclusion_probabilities", "budget", "positive", budget)
    wishes = least_variance(second_moments, costs)
    capped: set[int] = set()
    while True:
        rest = budget - sum(costs[i] for i in capped)
        open_cost = sum(wish * c for i, (wish, c) in enumerate(zip(wishes, costs, strict=True)) if i not in capped)
        scale = max(rest, 0.0) / open_cost if open_cost else 0.0
        over = {i for i, wish in enumerate(wishes) if i not in capped and wish * scale >= 1}
        if not over:
            return [1.0 if i in capped else wish * scale for i, wish in enumerate(wishes)]
        capped |= over
