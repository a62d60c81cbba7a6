"""Plots: the reward curve, the signs of reward hacking, histograms of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import written_aside
from ..grpo.image_statistics import STATISTICS
from .intervals import OVERALL
from .result import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHED_OVER = 10
"""Number of iterations in a running mean."""
NUM_COLUMNS = 3
"""Panels per row."""
NUM_BINS = 30
"""Bins of a histogram."""
PART, NO_PARTS = "reward_", ("reward_mean", "reward_std")
"""Prefix of the metrics of single rewards, and the metrics with this prefix that are something else."""
TITLES = {
    "reward_mean": "reward that is trained on",
    "kl": "KL to the starting policy",
    "log_ratio_rms": "spread of the log-ratios",
    "group_std": "spread of rewards in a group",
    "image_diversity": "diversity within a seed group",
    "image_saturation": "saturation",
    "image_contrast": "contrast",
    "image_clipped": "share of clipped values",
}

Metrics = Sequence[Mapping[str, float]]
"""Metric -> value, one mapping per iteration."""


def training_curve(path: Path, metrics: Metrics) -> None:
    """Draws the mean reward of every iteration and its running mean.

    Args:
        path: the PNG.
        metrics: of every iteration.
    """
    figure = _figure(7, 4)
    axes = figure.subplots()
    _curve(axes, metrics, "reward_mean")
    axes.set(xlabel="iteration", ylabel="reward of the training images (mean)", title="Reward during training")
    axes.legend()
    _save(path, figure)


def score_curve(path: Path, evaluations: Mapping[int, Evaluation]) -> None:
    """Draws the first measure on held-out prompts by iteration: each task, and all tasks with a 95 % interval.

    Args:
        path: the PNG.
        evaluations: number of iterations before it -> evaluation, of the same prompts and measures.
    """
    measure = next(iter(next(iter(evaluations.values())).measures))
    rows = [{task: row[measure] for task, row in each.intervals().items()} for each in evaluations.values()]
    iterations = list(evaluations)
    figure = _figure(7, 4)
    axes = figure.subplots()
    for task in rows[0]:
        style = {"color": "black", "linewidth": 2.5} if task == OVERALL else {"linewidth": 1}
        axes.plot(iterations, [row[task].mean for row in rows], marker="o", markersize=3, label=task, **style)
    low, high = ([getattr(row[OVERALL], end) for row in rows] for end in ("low", "high"))
    if None not in (*low, *high):
        axes.fill_between(iterations, low, high, color="black", alpha=0.15)
    axes.set(xlabel="iteration", ylabel=f"{measure} on held-out prompts (mean)", title="Held-out prompts")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(path, figure)


def hacking_signs(path: Path, metrics: Metrics, weights: Mapping[str, float]) -> None:
    """Draws the metrics that tell a better policy from one that hacks its reward, one panel each.

    These are the trained reward and all its parts, including those that are held out; the KL, if it was measured; the
    spread of the log-ratios and of the rewards in a group; and the statistics of the images.

    Args:
        path: the PNG.
        metrics: of every iteration.
        weights: reward -> its weight in the sum; held-out rewards have 0.
    """
    known = dict.fromkeys(name for row in metrics for name in row)  # a resumed run may have another method
    parts = [name for name in known if name.startswith(PART) and name not in NO_PARTS]
    measured = ["kl"] if any(row["kl"] for row in metrics) else []
    images = [name for name in STATISTICS if name in known]
    names = ["reward_mean", *parts, *measured, "log_ratio_rms", "group_std", *images]
    num_rows = -(-len(names) // NUM_COLUMNS)
    figure = _figure(4 * NUM_COLUMNS, 2.6 * num_rows)
    panels = figure.subplots(num_rows, NUM_COLUMNS, sharex=True, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        _curve(axes, metrics, name)
        axes.set_title(TITLES.get(name) or _title(name.removeprefix(PART), weights), fontsize=10)
    for place in range(len(names), len(panels)):
        panels[place].set_visible(False)
        panels[place - NUM_COLUMNS].tick_params(labelbottom=True)  # now the lowest of its column
    figure.suptitle(f"One iteration, and the mean of the last {SMOOTHED_OVER}", fontsize=10)
    _save(path, figure)


def _title(part: str, weights: Mapping[str, float]) -> str:
    """The title of a panel with a single reward."""
    return f"{part}, trained on" if weights.get(part) else f"{part}, held out"


def reward_histograms(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Draws a histogram of each measure over the images, with the evaluations in one panel.

    Args:
        path: the PNG.
        evaluations: name -> evaluation; the first one decides the measures.
    """
    names = list(next(iter(evaluations.values())).measures)
    num_columns = min(NUM_COLUMNS, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = _figure(4.5 * num_columns, 3 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=False):
        columns = {who: e.measures[name].tolist() for who, e in evaluations.items() if name in e.measures}
        every = [value for column in columns.values() for value in column]
        for who, column in columns.items():
            axes.hist(column, NUM_BINS, range=(min(every), max(every)), alpha=0.5, label=who)
        axes.set(xlabel=name, ylabel="images")
        axes.locator_params(axis="x", nbins=5)
        if len(columns) > 1:
            axes.legend(fontsize=8)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    _save(path, figure)


def _curve(axes: Axes, metrics: Metrics, name: str) -> None:
    """Draws one metric by iteration, and its running mean, of the iterations that have it."""
    iterations, values = ([row[key] for row in metrics if name in row] for key in ("iteration", name))
    windows = [values[max(0, end - SMOOTHED_OVER) : end] for end in range(1, len(values) + 1)]
    smooth = [sum(window) / len(window) for window in windows]
    axes.plot(iterations, values, color="tab:blue", alpha=0.3, linewidth=1, label="one iteration")
    axes.plot(iterations, smooth, color="tab:blue", linewidth=2, label=f"mean of the last {SMOOTHED_OVER}")
    locator: Any = axes.xaxis.get_major_locator()  # a MaxNLocator, as long as nobody sets another one
    locator.set_params(integer=True)
    axes.grid(alpha=0.3)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _save(path: Path, figure: Figure) -> None:
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")
