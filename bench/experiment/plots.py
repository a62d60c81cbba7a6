"""The pictures of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .analysis import Mean, at, reported, shared_end
from .methods import COMPETITORS, Competitor
from .results import Result

AXES = {"evaluations": "network evaluations of rollouts", "seconds": "seconds of training (shared machine)"}
NUM_POINTS = 60


def curves(path: Path, results: Sequence[Result]) -> None:
    """Draws strict accuracy and reward on held-out prompts against evaluations and seconds.

    Bands are 95 % intervals. Ablations are dashed and have none: with more than a few bands, none could be told apart.

    Args:
        path: of the PNG.
        results: all of them.
    """
    figure = Figure(figsize=(11, 8), layout="constrained", dpi=120)
    grid = figure.subplots(2, 2)
    for row, measure in zip(grid, ("accuracy", "reward"), strict=True):
        for axes, axis in zip(row, AXES, strict=True):
            for index, (name, method) in enumerate(COMPETITORS.items()):
                _curve(axes, reported(results, name), axis, measure, method, f"C{index}")
            axes.set(xlabel=AXES[axis], ylabel={"accuracy": "strict accuracy", "reward": "reward"}[measure])
            axes.grid(alpha=0.3)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)  # it would hide curves in a panel
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _curve(axes: Axes, runs: Sequence[Result], axis: str, measure: str, method: Competitor, color: str) -> None:
    if not runs:
        return
    end = shared_end(runs, axis)
    places = [end * point / NUM_POINTS for point in range(NUM_POINTS + 1)]
    means = [Mean.of([at(run, axis, place, measure) for run in runs]) for place in places]
    style = "--" if method.ablation else "-"
    axes.plot(places, [mean.value for mean in means], style, color=color, label=method.title)
    if len(runs) > 1 and not method.ablation:
        low, high = ([mean.value + sign * mean.error for mean in means] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=color, alpha=0.12, linewidth=0)
