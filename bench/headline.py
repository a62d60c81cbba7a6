"""How far reinforcement learning alone comes: a long run of the recipe `shapes`, and one of Flow-GRPO next to it.

Both have the recipe's settings and as many network evaluations. `make headline` runs them, or continues, and writes
docs/headline.png, docs/headline.json and the table of docs/long-runs.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from tempflow_fast.evaluation.intervals import OVERALL
from tempflow_fast.evaluation.result import Evaluation
from tempflow_fast.run.directory import RunDirectory

from .marked import filled
from .page import table

ROOT = Path(__file__).parents[1]


class Arm(NamedTuple):
    """A run of the headline."""

    name: str
    """Of its directory."""
    method: tuple[str, ...]
    sizes: tuple[str, ...]


ARMS = {
    "this package": Arm("shapes", (), ("--iterations", "600", "--eval-every", "50")),
    "Flow-GRPO": Arm("flow_grpo", ("--method", "flow_grpo"), ("--iterations", "967", "--eval-every", "80")),
}
"""Title -> run. An iteration has 1,740 network evaluations in the first run and 1,080 in the second."""
COMMON = ("--recipe", "shapes", "--seed", "7", "--eval-seed", "7")
QUICK = ("--iterations", "1", "--eval-every", "1", "--eval-images", "12", "--prompts-per-iteration", "2")
LEVELS, GOAL = (0.7, 0.8, 0.9), 0.95

Point = dict[str, float]


def run(directory: Path, quick: bool = False) -> None:
    """Runs both, one thread each, or continues them.

    Args:
        directory: of the run directories.
        quick: an iteration each.

    Raises:
        SystemExit: if one fails or is interrupted.
    """
    train = (sys.executable, "-m", "tempflow_fast", "train", *COMMON)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*train, *arm.method, *(QUICK if quick else arm.sizes), "--output", str(directory / arm.name)],
            env=environment,
        )
        for arm in ARMS.values()
    ]
    try:
        statuses = [process.wait() for process in running]
    except KeyboardInterrupt:  # which the runs get as well: each saves its weights
        statuses = [process.wait() for process in running]
        print("stopped; the same command continues", file=sys.stderr)
    if any(statuses):
        raise SystemExit(max(map(abs, statuses)))


def points(directory: Path) -> Iterator[Point]:
    """Strict accuracy on held-out prompts, with its 95 % interval over prompts, against the cost so far.

    Args:
        directory: of a run.
    """
    metrics = RunDirectory(directory).read_metrics()
    for path in sorted((directory / "evaluations").iterdir()):
        done = metrics[: int(path.name)]
        found = Evaluation.load(path / "scores.safetensors").intervals()[OVERALL]["accuracy"]
        yield {
            "evaluations": sum(row["num_row_evaluations"] for row in done),
            "seconds": done[-1]["seconds"] if done else 0.0,
            "accuracy": found.mean,
            "low": found.low,
            "high": found.high,
        }


def picture(path: Path, curves: Mapping[str, Sequence[Point]]) -> None:
    """Draws the curves with their intervals."""
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=120)
    axes = figure.subplots()
    for title, curve in curves.items():
        places = [point["evaluations"] / 1e6 for point in curve]
        axes.plot(places, [point["accuracy"] for point in curve], marker=".", label=title)
        low, high = ([point[side] for point in curve] for side in ("low", "high"))
        axes.fill_between(places, low, high, alpha=0.15, linewidth=0)
    axes.axhline(GOAL, color="gray", linestyle=":", linewidth=1, label=f"goal, {GOAL}")
    axes.set(xlabel="million network evaluations of rollouts", ylabel="strict accuracy, held-out prompts")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path)


def lines(curves: Mapping[str, Sequence[Point]]) -> str:
    """The table of the page."""

    def first(curve: Sequence[Point], level: float) -> str:
        reached = [point["evaluations"] for point in curve if round(point["accuracy"], 9) >= level]
        return f"{reached[0]:,.0f}" if reached else "not reached"

    return table(
        {
            "run": title,
            "before": f"{curve[0]['accuracy']:.3f}",
            "after": f"{curve[-1]['accuracy']:.3f} ({curve[-1]['low']:.3f} to {curve[-1]['high']:.3f})",
            "evaluations": f"{curve[-1]['evaluations']:,.0f}",
            "minutes": f"{curve[-1]['seconds'] / 60:.0f}",
            **{f"first look at {level} or more": first(curve, level) for level in LEVELS},
        }
        for title, curve in curves.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs and writes.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.headline", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "headline", help="directory of the runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the picture and the figures go")
    parser.add_argument("--quick", action="store_true", help="an iteration each, to see that it works")
    given = parser.parse_args(arguments)
    run(given.output, given.quick)
    curves: dict[str, Any] = {title: list(points(given.output / arm.name)) for title, arm in ARMS.items()}
    (given.docs / "headline.json").write_text(json.dumps(curves, indent=1) + "\n")
    picture(given.docs / "headline.png", curves)
    page = given.docs / "long-runs.md"
    page.write_text(filled(page.read_text(), "headline", "make headline", lines(curves)))
    print(f"wrote {given.docs / 'headline.png'}, headline.json and the table of long-runs.md")


if __name__ == "__main__":
    main()
