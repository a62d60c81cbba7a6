"""What branch steps are worth their cost: measurements of many iterations -> probabilities, or numbers of branches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import mul
from typing import Any

from ..settings.iteration import GRPOConfig
from .meter import NOISE, SIGNAL

BACKWARD = 2
"""Cost of a backward pass, in forward passes."""
FLOOR = 0.2
"""Share of the starting sizes that is always kept, so that every step is measured again."""
GAIN = 0.1
"""Share of the variance that other numbers of branches must save before they replace those in use."""


def least_variance(second_moments: Sequence[float], costs: Sequence[float]) -> list[float]:
    """Sizes in proportion to which to draw each step, so that a cost gives the least variance.

    A step that is taken with probability p and weighted by 1 / p leaves the expected gradient as it is. The variance of
    the sum is then the sum of E |g|^2 / p, plus a constant; under the cost, the sum of p c, it is least for p in
    proportion to sqrt(E |g|^2 / c) (Neyman allocation).

    Args:
        second_moments: E |g|^2 of each step; an estimate below 0 counts as 0.
        costs: c, per step and trajectory.
    """
    return [math.sqrt(max(q, 0.0) / c) for q, c in zip(second_moments, costs, strict=True)]


def allotted(
    moments: Sequence[float], costs: Sequence[float], ranges: Sequence[tuple[int, int]], budget: float
) -> list[int]:
    """Numbers of branches that give the least variance within a budget.

    The gradient of a step is a mean over its K branches, whose noise is independent; so the variance of the sum over
    steps is the sum of moment / K. Branches are added one by one where they take most of it off per cost, which leads
    to K in proportion to sqrt(moment / cost) (Neyman allocation), in integers.

    Args:
        moments: E |g|^2 of each step with one branch; an estimate below 0 counts as 0.
        costs: c of one branch of each step.
        ranges: the least and the most branches of each step.
        budget: the most that all branches of a trajectory may cost; the least ones are taken in any case.

    Returns:
        K of each step.
    """
    counts = [least for least, _ in ranges]
    left = budget - sum(map(mul, counts, costs))
    while True:
        open_to = [i for i, (_, most) in enumerate(ranges) if counts[i] < most and costs[i] <= left]
        if not open_to:
            return counts
        best = max(open_to, key=lambda i: max(moments[i], 0.0) / (counts[i] * (counts[i] + 1) * costs[i]))
        counts[best] += 1
        left -= costs[best]


def step_costs(config: GRPOConfig) -> list[float]:
    """Forward passes of each branch step with branches, per trajectory: its tails and its row of training.

    Args:
        config: the settings.
    """
    columns = zip(config.branch_counts, config.tail_lengths, strict=True)
    return [count * length + 1.0 + BACKWARD for (_, count), (_, length) in columns]


def branch_range(start: int) -> tuple[int, int]:
    """The least and the most branches that an adaptive budget gives a step.

    Args:
        start: K of the settings.
    """
    return max(min(2, start), -(-start // 2)), 2 * start


def most_branches(config: GRPOConfig) -> list[int]:
    """The numbers of branches with the most images that an iteration may have, of each step with branches.

    Args:
        config: the settings.
    """
    counts = [count for _, count in config.branch_counts]
    if config.branch_budget is None or config.branches_per_trajectory is not None:
        return counts
    costs = branch_costs(config)
    ranges = [branch_range(count) for count in counts]
    left = sum(map(mul, counts, costs)) - sum(least * cost for (least, _), cost in zip(ranges, costs, strict=True))
    for place in sorted(range(len(counts)), key=costs.__getitem__):
        least, most = ranges[place]
        counts[place] = min(most, least + left // costs[place])
        left -= (counts[place] - least) * costs[place]
    return counts


def branch_costs(config: GRPOConfig) -> list[int]:
    """Evaluations of one branch of each step with branches; an image is not free even without a tail.

    Args:
        config: the settings.
    """
    return [max(length, 1) for _, length in config.tail_lengths]


def mixed_sizes(start: Sequence[float], wishes: Sequence[float], share: float) -> list[float]:
    """Sizes of which a share is as at the start and the rest as wished; the start where nothing is wished.

    Args:
        start: positive, of each step.
        wishes: not negative.
        share: in 0 .. 1.
    """
    if not sum(wishes):
        return list(start)
    return [
        share * first / sum(start) + (1 - share) * wish / sum(wishes) for first, wish in zip(start, wishes, strict=True)
    ]


@dataclass
class BranchBudget:
    """Exponential averages of what `StepMeter` finds, and what follows.

    Where branch steps are drawn, it is `branch_probabilities`: weights 1 / p follow, and the expected update is that of
    all branch steps. Where every trajectory takes all of them, it is `num_branches`: branch steps still count alike.
    """

    num_measured: int = 0
    """Iterations in the averages."""
    moments: dict[int, float] = field(default_factory=dict)
    """Branch step -> the average of K E |g|^2 of one trajectory: what E |g|^2 would be with one branch."""
    counts: dict[int, int] = field(default_factory=dict)
    """Branch step -> the number of branches in use; empty: those of the settings."""

    def applied(self, config: GRPOConfig) -> GRPOConfig:
        """The settings of the next iteration.

        Args:
            config: those of the run, with the tails of that iteration.

        Returns:
            The same with the probabilities or the numbers of branches that the averages give; `config` itself without
            an adaptive budget, or before anything is measured at its branch steps.
        """
        counts = dict(config.branch_counts)
        if config.branch_budget is None or counts.keys() != self.moments.keys():
            return config
        if config.branches_per_trajectory is None:
            return replace(config, num_branches=config.as_table(self.counts, 0)) if self.counts else config
        return replace(config, branch_probabilities=config.as_table(self._sizes(config, counts), 1.0))

    def _sizes(self, config: GRPOConfig, counts: Mapping[int, int]) -> dict[int, float]:
        """Sizes in proportion to which the branch steps are drawn."""
        starts = config.branch_probabilities and [size for _, size in config.per_step("branch_probabilities")]
        wishes = least_variance([self.moments[step] / count for step, count in counts.items()], step_costs(config))
        share = max(FLOOR, math.exp(-self.num_measured / config.budget_memory))
        return dict(zip(counts, mixed_sizes(starts or [1.0] * len(counts), wishes, share), strict=True))

    def note(self, config: GRPOConfig, metrics: Mapping[str, float]) -> None:
        """Takes an iteration into the averages, unless one of its figures is not finite.

        Args:
            config: those of the run, with the tails of that iteration.
            metrics: of the iteration.
        """
        if config.branch_budget is None:
            return
        starts = dict(config.branch_counts)
        used = self.counts if self.counts.keys() == starts.keys() else starts
        seconds = {step: float(metrics[f"{SIGNAL}{step}"]) + float(metrics[f"{NOISE}{step}"]) for step in starts}
        found = {step: used[step] * second for step, second in seconds.items()}
        if not all(map(math.isfinite, found.values())):
            return
        if found.keys() != self.moments.keys():  # other branch steps: the averages begin again
            self.num_measured, self.moments, self.counts = 0, dict.fromkeys(starts, 0.0), {}
        decay = math.exp(-1 / config.budget_memory)
        self.num_measured += 1
        # Weights decay ** age that add up to 1, however few iterations there are.
        weight = (1 - decay) / (1 - decay**self.num_measured)
        self.moments = {step: old + weight * (found[step] - old) for step, old in self.moments.items()}
        if config.branches_per_trajectory is None and self.num_measured >= config.budget_memory:
            self._allot(config, used)

    def _allot(self, config: GRPOConfig, used: Mapping[int, int]) -> None:
        """Changes the numbers of branches if that saves enough, or if longer tails have made them exceed the budget."""
        starts = dict(config.branch_counts)
        costs = dict(zip(starts, branch_costs(config), strict=True))
        budget = sum(starts[step] * cost for step, cost in costs.items())
        ranges = [branch_range(start) for start in starts.values()]
        order = list(starts)
        wanted = allotted([self.moments[s] for s in order], [costs[s] for s in order], ranges, budget)
        variances = [
            sum(max(self.moments[step], 0.0) / counts[step] for step in order)
            for counts in (used, dict(zip(order, wanted, strict=True)))
        ]
        exceeded = sum(used[step] * cost for step, cost in costs.items()) > budget
        if exceeded or variances[1] < (1 - GAIN) * variances[0]:
            self.counts = dict(zip(order, wanted, strict=True))

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint keeps; `from_json` reads it."""
        moments = {str(step): value for step, value in self.moments.items()}
        counts = {str(step): value for step, value in self.counts.items()}
        return {"num_measured": self.num_measured, "moments_of_one": moments, "counts": counts}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> BranchBudget:
        """A budget as it was.

        Args:
            facts: what `as_json` returned.
        """
        if "moments_of_one" not in facts:  # of a version that kept other averages
            return cls()
        moments = {int(step): float(value) for step, value in facts["moments_of_one"].items()}
        return cls(int(facts["num_measured"]), moments, {int(k): int(value) for k, value in facts["counts"].items()})
