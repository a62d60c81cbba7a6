"""95 % bootstrap intervals of means over images, per task and over all tasks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..choices import OVERALL

NUM_RESAMPLES = 2000
COVERED = 0.95
"""Share of the resampled means that an interval contains."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval: 95 % of the resampled sets of prompts have their mean in it."""

    mean: float
    low: float | None
    """None for a task with a single image, which has no interval."""
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return _short(self.mean)
        return f"{_short(self.mean)} ({_short(self.low)} to {_short(self.high)})"


def task_means(values: Tensor, tags: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
    """Averages over the images of each task.

    Args:
        values: [R] scores.
        tags: R tasks.
        tasks: in the order of reports; those without an image are left out.

    Returns:
        Task -> mean, and `overall`, the mean of the tasks' means, as in GenEval.
    """
    chosen = {task: torch.tensor([tag == task for tag in tags]) for task in tasks if task in tags}
    means = {task: values[rows].mean().item() for task, rows in chosen.items()}
    return {**means, OVERALL: sum(means.values()) / len(means)}


def standard_error(values: Tensor, tags: Sequence[str]) -> float:
    """Computes the standard error of the mean of the tasks' means, over images of the same prompts.

    It says how far other noise for these prompts in these numbers would move the mean if images were independent. The
    choice of prompts is not in it; the intervals of `task_intervals` contain it.

    Args:
        values: [R] scores, or paired differences of scores.
        tags: R tasks.

    Returns:
        sqrt(sum over tasks of s^2 / n) / T, with the unbiased variance s^2 of the task's n values; a task with a single
        value, which has no variance, adds 0.
    """
    tasks = dict.fromkeys(tags)
    parts = [values[torch.tensor([tag == task for tag in tags])] for task in tasks]
    variance = sum(part.var(correction=0).item() / max(len(part) - 1, 1) for part in parts)
    return variance**0.5 / len(parts)


def task_intervals(
    values: Tensor, tags: Sequence[str], tasks: Sequence[str], prompts: Sequence[Hashable]
) -> dict[str, Interval]:
    """Computes the means of `task_means` with their intervals.

    The bootstrap draws prompts with replacement, separately for each task and each prompt with all its images: images
    of one prompt are not independent, and a benchmark fixes the number of prompts per task. For a task with a single
    prompt it draws images instead. The same values always give the same intervals.

    Args:
        values: [R] scores, or paired differences of scores.
        tags: R tasks.
        tasks: in the order of reports.
        prompts: R keys that are equal for images of one prompt.

    Returns:
        Task -> interval, with `overall` last.
    """
    generator = torch.Generator().manual_seed(0)
    drawn, found = [], {}
    for task, mean in task_means(values, tags, tasks).items():
        if task != OVERALL:
            drawn.append(_resampled(*_by_prompt(values, tags, prompts, task), generator))
        resampled = drawn[-1] if task != OVERALL else _mean_of_tasks(drawn)
        found[task] = _interval(mean, resampled)
    return found


def _by_prompt(values: Tensor, tags: Sequence[str], prompts: Sequence[Hashable], task: str) -> tuple[Tensor, Tensor]:
    """The sum and the number of values for each prompt of a task, [P] and [P]; for each image, if P would be 1."""
    rows: dict[Hashable, list[int]] = {}
    for row, (tag, prompt) in enumerate(zip(tags, prompts, strict=True)):
        if tag == task:
            rows.setdefault(prompt, []).append(row)
    groups = list(rows.values())
    if len(groups) == 1:
        groups = [[row] for row in groups[0]]
    sums = torch.stack([values[own].sum() for own in groups])
    return sums.double(), torch.tensor([len(own) for own in groups], dtype=torch.float64)


def _resampled(sums: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor | None:
    """Means of `NUM_RESAMPLES` draws of as many prompts as there are, [NUM_RESAMPLES]; None for a single prompt."""
    if len(sums) < 2:
        return None
    chosen = torch.randint(len(sums), (NUM_RESAMPLES, len(sums)), generator=generator)
    return sums[chosen].sum(1) / counts[chosen].sum(1)


def _mean_of_tasks(drawn: Sequence[Tensor | None]) -> Tensor | None:
    known = [means for means in drawn if means is not None]
    return torch.stack(known).mean(0) if len(known) == len(drawn) else None


def _interval(mean: float, resampled: Tensor | None) -> Interval:
    if resampled is None:
        return Interval(mean, None, None)
    tail = (1 - COVERED) / 2
    low, high = resampled.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(mean, low, high)


def _short(value: float) -> str:
    """Four significant digits: some rewards are in the thousandths."""
    return f"{value:#.4g}"
