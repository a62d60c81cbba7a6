"""The pictures of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure as Picture

from . import op_cases
from .figures import Figure, Figures
from .runs import Run

COLORS = {
    op_cases.SCRIPTS: "tab:red",
    op_cases.TUNED: "tab:orange",
    op_cases.COMPILED_SCRIPTS: "tab:purple",
    op_cases.COMPILED: "tab:blue",
}
STAGES = {"rollout": "tab:blue", "decode": "tab:gray", "train": "tab:orange"}
SMOOTHED_OVER = 10


def ops(path: Path, figures: Figures) -> None:
    """Times faster than each baseline, op by op."""
    names = [name for name in ("branch_step", "euler_step", "policy_loss", "log_prob") if figures.section(name)]
    picture = _picture(4 * len(names), 3.4)
    for axes, op in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = figures.section(op)
        others = [name for name in COLORS if name in rows[0].seconds]
        height = 0.8 / len(others)
        for index, other in enumerate(others):
            places = [position + index * height for position in range(len(rows))]
            axes.barh(places, [row.ratio(other) for row in rows], height, color=COLORS[other], label=other)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(
            [position + 0.4 - height / 2 for position in range(len(rows))], [row.row for row in rows], fontsize=7
        )
        axes.invert_yaxis()
        axes.set_title(op, fontsize=10)
        axes.set_xlabel("times faster", fontsize=8)
        axes.grid(alpha=0.3, axis="x")
        axes.legend(fontsize=6)
    picture.savefig(path)


def iterations(path: Path, figures: Figures) -> None:
    """Seconds of the stages over the whole of the paper's structure."""
    rows = figures.section("iteration")
    picture = _picture(8, 1 + 0.36 * len(rows))
    axes = picture.subplots()
    for index, row in enumerate(rows):
        _stacked(axes, index, row)
    axes.set_yticks(range(len(rows)), [row.row for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds over those of the paper's structure (upper bars; lower ones: ours)", fontsize=8)
    axes.set_xlim(0, 1.25)
    axes.legend(STAGES, fontsize=8, loc="lower right")
    picture.savefig(path)


def _stacked(axes: object, index: int, row: Figure) -> None:
    ours, papers = row.facts["parts"].values()
    whole = list(row.seconds.values())[-1]
    for offset, parts in ((-0.2, papers), (0.2, ours)):
        left = 0.0
        for stage, color in STAGES.items():
            share = parts[stage] / whole
            axes.barh(index + offset, share, 0.36, left=left, color=color, alpha=0.6 if parts is papers else 1.0)
            left += share


def scaling(path: Path, figures: Figures) -> None:
    """Seconds against N, T, K and D, and the law through the last point."""
    names = [name for name in "NTKD" if figures.section(f"scaling with {name}")]
    picture = _picture(3.4 * len(names), 3)
    for axes, name in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = figures.section(f"scaling with {name}")
        sizes, laws = ([row.facts[key] for row in rows] for key in ("size", "law"))
        seconds = [next(iter(row.seconds.values())) for row in rows]
        axes.loglog(sizes, [law * seconds[-1] / laws[-1] for law in laws], color="tab:gray", label="law")
        axes.loglog(sizes, seconds, "o", color="tab:blue", label="measured")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
        axes.minorticks_off()
        axes.set_title(f"{'branch_step' if name == 'D' else 'iteration'} against {name}", fontsize=10)
        axes.set_ylabel("seconds", fontsize=8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    picture.savefig(path)


def runs(path: Path, named: Mapping[str, Sequence[Run]]) -> None:
    """Reward against seconds, a running mean of every run, a colour per label."""
    picture = _picture(7, 4)
    axes = picture.subplots()
    for index, (label, each) in enumerate(named.items()):
        for number, run in enumerate(each):
            windows = [run.rewards[max(0, end - SMOOTHED_OVER) : end] for end in range(1, len(run.rewards) + 1)]
            means = [sum(window) / len(window) for window in windows]
            axes.plot(run.seconds, means, color=f"C{index}", alpha=0.8, label=None if number else label)
    axes.set(xlabel="seconds", ylabel=f"reward, mean of the last {SMOOTHED_OVER} iterations")
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(path)


def _picture(width: float, height: float) -> Picture:
    return Picture(figsize=(width, height), dpi=130, layout="constrained")
