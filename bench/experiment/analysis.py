"""What the results say: curves, evaluations to a target and paired differences, with 95 % intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .results import Result

STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Degrees of freedom -> 97.5 % quantile of Student's distribution."""

TUNED = ("learning_rate", "noise_level")
"""What tuning chooses."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and half the width of its 95 % interval; infinite for one seed."""

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of one value per seed."""
        count = len(values)
        value = math.fsum(values) / count
        if count == 1:
            return cls(value, math.inf, 1)
        spread = math.sqrt(math.fsum((each - value) ** 2 for each in values) / (count - 1))
        return cls(value, STUDENT[count - 1] * spread / math.sqrt(count), count)

    def __str__(self) -> str:
        return f"{self.value:.3f}" + (f" ± {self.error:.3f}" if self.count > 1 else " (one seed)")


def reported(results: Sequence[Result], method: str, stage: str = "report") -> list[Result]:
    """The runs of a method, by seed: those with the settings of the last one, as tuning chooses them for all seeds."""
    chosen = [each for each in results if (each["stage"], each["method"]) == (stage, method)]
    alike = [each for each in chosen if all(each[name] == chosen[-1][name] for name in TUNED)]
    return sorted(alike, key=lambda each: each["seed"])


def at(result: Result, axis: str, where: float, measure: str = "accuracy") -> float:
    """A measure of a run between two looks at it, on the line between them.

    Args:
        result: the run.
        axis: "evaluations", "work" or "seconds".
        where: the place; the first and the last look count before and after all looks.
        measure: "accuracy" or "reward".
    """
    places, values = result[axis], result[measure]
    for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
        if where <= right:
            return low + (high - low) * max(0.0, where - left) / (right - left)
    return values[-1]


def first_at(result: Result, axis: str, target: float) -> float | None:
    """Where a run's strict accuracy first reaches a target, on the line between two looks; None: it has not."""
    places, values = result[axis], result["accuracy"]
    if values[0] >= target:
        return places[0]
    for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
        if high >= target:
            return left + (right - left) * (target - low) / (high - low)
    return None


def shared_end(results: Sequence[Result], axis: str) -> float:
    """The last place that every run has reached."""
    return min(each[axis][-1] for each in results)


def difference(first: Sequence[Result], second: Sequence[Result], axis: str = "evaluations") -> Mean | None:
    """Strict accuracy of one method minus that of another, at equal cost, over the seeds that both have.

    Args:
        first: the runs of one method, one per seed.
        second: those of the other.
        axis: the cost, "evaluations", "work" or "seconds"; it is as high as the shortest of these runs allows.
    """
    others = {each["seed"]: each for each in second}
    pairs = [(each, others[each["seed"]]) for each in first if each["seed"] in others]
    if not pairs:
        return None
    end = shared_end([each for pair in pairs for each in pair], axis)
    return Mean.of([at(one, axis, end) - at(other, axis, end) for one, other in pairs])
