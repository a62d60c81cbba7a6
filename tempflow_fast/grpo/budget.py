"""Which branch steps are worth their cost: measurements of many iterations -> probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..settings.iteration import GRPOConfig
from .meter import NOISE, SIGNAL

BACKWARD = 2
"""Cost of a backward pass, in forward passes."""
FLOOR = 0.2
"""Share of the starting sizes that is always kept, so that every step is measured again."""


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


def step_costs(config: GRPOConfig) -> list[float]:
    """Forward passes of each branch step with branches, per trajectory: its tails and its row of training.

    Args:
        config: the settings.
    """
    columns = zip(config.branch_counts, config.tail_lengths, strict=True)
    return [count * length + 1.0 + BACKWARD for (_, count), (_, length) in columns]


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
    """Exponential averages of what `StepMeter` finds, and the probabilities that follow.

    Training does not see them but through `branch_probabilities`; so weights 1 / p follow, and the expected update is
    that of all branch steps.
    """

    num_measured: int = 0
    """Iterations in the averages."""
    moments: dict[int, float] = field(default_factory=dict)
    """Branch step -> the average of E |g|^2 of one trajectory."""

    def applied(self, config: GRPOConfig) -> GRPOConfig:
        """The settings of the next iteration.

        Args:
            config: those of the run.

        Returns:
            The same with the probabilities that the averages give; `config` itself without an adaptive budget, or
            before anything is measured at its branch steps.
        """
        steps = [step for step, _ in config.branch_counts]
        if config.branch_budget is None or set(steps) != self.moments.keys():
            return config
        starts = config.branch_probabilities and [size for _, size in config.per_step("branch_probabilities")]
        wishes = least_variance([self.moments[step] for step in steps], step_costs(config))
        share = max(FLOOR, math.exp(-self.num_measured / config.budget_memory))
        sizes = dict(zip(steps, mixed_sizes(starts or [1.0] * len(steps), wishes, share), strict=True))
        table = range(config.num_steps - 1) if config.branch_steps is None else config.branch_steps
        return replace(config, branch_probabilities=tuple(sizes.get(step, 1.0) for step in table))

    def note(self, config: GRPOConfig, metrics: Mapping[str, float]) -> None:
        """Takes an iteration into the averages, unless one of its figures is not finite.

        Args:
            config: the settings.
            metrics: of the iteration.
        """
        if config.branch_budget is None:
            return
        steps = [step for step, _ in config.branch_counts]
        found = {step: float(metrics[f"{SIGNAL}{step}"]) + float(metrics[f"{NOISE}{step}"]) for step in steps}
        if not all(map(math.isfinite, found.values())):
            return
        if found.keys() != self.moments.keys():  # other branch steps: the averages begin again
            self.num_measured, self.moments = 0, dict.fromkeys(steps, 0.0)
        decay = math.exp(-1 / config.budget_memory)
        self.num_measured += 1
        # Weights decay ** age that add up to 1, however few iterations there are.
        weight = (1 - decay) / (1 - decay**self.num_measured)
        self.moments = {step: old + weight * (found[step] - old) for step, old in self.moments.items()}

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint keeps; `from_json` reads it."""
        return {"num_measured": self.num_measured, "moments": {str(k): value for k, value in self.moments.items()}}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> BranchBudget:
        """A budget as it was.

        Args:
            facts: what `as_json` returned.
        """
        moments = {int(step): float(value) for step, value in facts["moments"].items()}
        return cls(int(facts["num_measured"]), moments)
