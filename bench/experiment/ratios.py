"""The cost to a target, and how many times more of it one method needs than another, over the seeds that both have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .analysis import Mean, first_at
from .results import Result


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of one ratio per seed, and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    is_bound: bool
    """Whether a slower run had not reached the target when it ended, so that the true ratio is larger."""

    def __str__(self) -> str:
        if self.is_bound:  # the spread of runs that were cut off says nothing
            return f"at least {self.value:.2f}x"
        interval = "one seed" if self.count == 1 else f"{self.low:.2f} to {self.high:.2f}, {self.count} seeds"
        return f"{self.value:.2f}x ({interval})"


def speedup(slower: Sequence[Result], faster: Sequence[Result], target: float, axis: str = "seconds") -> Ratio | None:
    """The cost of one method to the target, divided by that of another.

    A slower run that has not reached the target counts with all its cost, and the ratio is then a lower bound. None
    if a faster run has not reached it, or no seed has both.

    Args:
        slower: the runs of one method, one per seed.
        faster: those of the other.
        target: strict accuracy.
        axis: the cost, "evaluations", "work" or "seconds".
    """
    others, logarithms, is_bound = {each["seed"]: each for each in faster}, [], False
    for run in slower:
        if run["seed"] not in others:
            continue
        reached, other = first_at(run, axis, target), first_at(others[run["seed"]], axis, target)
        if not other:
            return None
        is_bound |= reached is None
        logarithms.append(math.log((run[axis][-1] if reached is None else reached) / other))
    if not logarithms:
        return None
    mean = Mean.of(logarithms)
    low, high = (math.exp(mean.value + sign * mean.error) if mean.count > 1 else math.nan for sign in (-1, 1))
    return Ratio(math.exp(mean.value), low, high, mean.count, is_bound)
