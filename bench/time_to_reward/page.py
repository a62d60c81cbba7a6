"""results.jsonl -> docs/time-to-reward.md."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tempflow_fast.files import write_text

from .. import machine
from ..experiment.analysis import first_at, reported
from ..experiment.methods import METHODS, SAME_UPDATE
from ..experiment.page import table
from ..experiment.ratios import speedup
from ..experiment.results import Result

GOAL = 4.0
LEVELS = (0.65, 0.7, 0.75)
"""Strict accuracies on the way."""
TUNING = (
    "Arms with fewer branch steps have 20 prompts and a rate of 8e-4, chosen from four runs of the last arm on a "
    "seed that is not reported, scored on other noise: with 12 prompts at 4e-4 and 8e-4, with 20 at 8e-4 and "
    "1.2e-3 (`tempflow-fast train --recipe shapes --seed 101 --eval-seed 7 --num-steps 10 --sigmas 1 .9 .8 .7 .6 "
    ".5 .4 .3 .2 .1 0 --branch-steps 1 2 3 4 --tail-steps 2 --learning-rate-decay 0 --iterations 80 --eval-every "
    "10`)."
)
AXIS = "processor"
"""Of the results: seconds of processor time. A run has one thread, and other jobs of the machine matter less."""


def write_page(
    path: Path, results: Sequence[Result], arms: Sequence[str], num_seeds: int, target: float, most: int
) -> None:
    """Writes the page.

    Args:
        path: of the page.
        results: all runs.
        arms: names of METHODS, from the slowest to the fastest.
        num_seeds: how many seeds are planned.
        target: strict accuracy.
        most: iterations after which a run is given up.
    """
    runs = {name: reported(results, name, "time") for name in arms}
    runs |= {name: _at_pace(runs[arms[0]], runs[name]) for name in arms if name in SAME_UPDATE}
    done = min(sum(_is_over(run, target, most) for run in each) for each in runs.values())
    facts = ", ".join(f"{name} {value}" for name, value in machine.facts().items())
    whole = speedup(runs[arms[0]], runs[arms[-1]], target, AXIS)
    parts = [
        "# Time to reward",
        f"`make time-to-reward` writes this page. Seconds of processor time of training, without evaluations, until "
        f"strict accuracy on held-out prompts is {target:g}, interpolated between two evaluations. The arms of a seed "
        "take turns on one core. "
        "The paper's structure has 12 prompts an iteration, and the learning rate and noise level that `make "
        f"experiment` has chosen for TempFlow-GRPO. {TUNING} Compilation "
        "counts, unless the machine has it in its cache. "
        f"The update of {' and of '.join(f'*{METHODS[name].title}*' for name in arms if name in SAME_UPDATE)} is "
        "that of the first arm, to rounding: only their seconds per iteration are measured, over six iterations in "
        "each turn, and the first arm's curve is rescaled by them.",
        f"Machine: {facts}.",
        ""
        if done >= num_seeds
        else f"**Not finished, so nothing is claimed yet**: whole seeds so far: {done} of "
        f"{num_seeds}. The same command continues.",
        f"{METHODS[arms[-1]].title} against {METHODS[arms[0]].title}: **{whole or 'not known yet'}**; the goal is "
        f"{GOAL:g}x.",
        table([_line(name, runs[name], target) for name in arms if runs[name]]) if any(runs.values()) else "",
        *_to_other_accuracies(runs[arms[0]], runs[arms[-1]], target),
        "## What each part adds",
        table(
            [
                {
                    "from": METHODS[one].title,
                    "to": METHODS[two].title,
                    "times faster": speedup(runs[one], runs[two], target, AXIS) or "not known yet",
                }
                for one, two in pairwise(arms)
            ]
        ),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def _to_other_accuracies(slow: Sequence[Result], fast: Sequence[Result], target: float) -> list[str]:
    levels = (*(level for level in LEVELS if level < target), target)
    rows = [
        {"strict accuracy": f"{level:g}", "times faster": found}
        for level in levels
        if (found := speedup(slow, fast, level, AXIS))
    ]
    if not rows:
        return []
    return ["## To other accuracies", "The last arm against the first, from the same runs:", table(rows)]


def _at_pace(curves: Sequence[Result], timed: Sequence[Result]) -> list[Result]:
    """The curves of one arm with the seconds that another one takes for an iteration, for the seeds that both have."""
    paces = {run["seed"]: _pace(run) for run in timed}
    found = []
    for run in curves:
        if run["seed"] in paces:
            ratio = paces[run["seed"]] / _pace(run)
            found.append({**run, AXIS: [ratio * each for each in run[AXIS]]})
    return found


def _pace(run: Result) -> float:
    """Seconds of an iteration after the first look: the first iterations compile and warm up."""
    return (run[AXIS][-1] - run[AXIS][1]) / (run["iterations"][-1] - run["iterations"][1])


def _is_over(run: Result, target: float, most: int) -> bool:
    return first_at(run, AXIS, target) is not None or run["iterations"][-1] >= most


def _line(name: str, runs: Sequence[Result], target: float) -> dict[str, object]:
    found = {run["seed"]: first_at(run, AXIS, target) for run in runs}
    seconds = {
        f"seed {run['seed']}": f"more than {run[AXIS][-1]:.0f} s"
        if found[run["seed"]] is None
        else f"{found[run['seed']]:.0f} s"
        for run in runs
    }
    each = sum(map(_pace, runs)) / len(runs)
    return {"": METHODS[name].title, "seconds an iteration": f"{each:.2f}", **seconds}
