"""A signal report as text, as JSON and as a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import written_aside
from .estimates import Estimate
from .summary import SettingSignal, SignalReport, StepSignal

SETTING_HEAD = (
    *("setting", "evaluations", "passes", "seconds", "reward", "snr2", "along the first"),
    *("relative", "per evaluation", "kept at least", "iterations to tell"),
)
UNRESOLVED = (
    "The signal of the first setting is not above 0 by two standard errors, so the ratios to it mean nothing yet: "
    "use more --iterations or more prompts."
)
STEP_HEAD = ("step", "passes", "reward spread", "snr2", "per 100 passes", "cosine with the first")


def as_text(report: SignalReport) -> str:
    """The tables: one of settings, and one of branch steps per setting.

    Args:
        report: what was measured.
    """
    lines = [
        f"{report.num_iterations} iterations; a number after +- is a standard error. Network evaluations of a rollout,",
        "and forward passes with training, are those of one prompt.",
        "",
    ]
    lines += _table(SETTING_HEAD, [_setting_row(setting) for setting in report.settings])
    for setting in report.settings:
        lines += ["", f"{setting.name}, by branch step:"]
        lines += _table(STEP_HEAD, [_step_row(step) for step in setting.steps])
    if not report.is_resolved:
        lines += ["", UNRESOLVED]
    return "\n".join(lines)


def as_advice(report: SignalReport, budget: float | None = None) -> str:
    """What to use, and what is not sure about it; nothing where the signal is not resolved.

    Args:
        report: what was measured.
        budget: the most forward passes that a prompt may cost, see `SignalReport.recommended`.
    """
    if not report.is_resolved:
        return ""
    best, *others = report.order
    advice = report.recommended(budget)
    lines = ["", f"Most signal per evaluation: {advice.name}; of it, {advice}."]
    if others:
        needed = report.iterations_to_tell[best][others[0]]
        told = "no number of iterations tells it from the best" if needed is None else _told(needed, report)
        lines.append(f"Next: {report.settings[others[0]].name}; {told}.")
    return "\n".join([*lines, ""])


def _told(needed: int, report: SignalReport) -> str:
    more = needed - report.num_iterations
    return f"{more} more iterations would tell it from the best" if more > 0 else "it is surely less"


def as_json(report: SignalReport) -> dict[str, Any]:
    """The same as numbers, lists and dictionaries; a number that is not finite becomes None.

    Args:
        report: what was measured.
    """
    return _plain(dataclasses.asdict(report))


def signal_plot(path: Path, report: SignalReport) -> None:
    """Draws the signal of each branch step, per iteration and per 100 forward passes, with standard errors.

    Args:
        path: the PNG.
        report: what was measured.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2 + 0.2 * len(report.settings)), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2)
    for setting in report.settings:
        steps = [step.step for step in setting.steps]
        for axes, scales in zip(panels, ([1.0] * len(steps), [100 / s.cost for s in setting.steps]), strict=True):
            values = [s.snr2.value * scale for s, scale in zip(setting.steps, scales, strict=True)]
            errors = [s.snr2.error * scale for s, scale in zip(setting.steps, scales, strict=True)]
            axes.errorbar(steps, values, errors, marker="o", markersize=4, capsize=3, label=setting.name)
    for axes, title in zip(panels, ("per iteration", "per 100 forward passes"), strict=True):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="branch step", ylabel="|E g|² / variance", title=f"Signal {title}")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")


def _setting_row(setting: SettingSignal) -> tuple[str, ...]:
    told = "-" if setting.iterations_to_tell is None else str(setting.iterations_to_tell)
    return (
        setting.name,
        f"{setting.evaluations:g}",
        f"{setting.cost:g}",
        "-" if math.isnan(setting.seconds) else f"{setting.seconds:.2f}",
        "-" if math.isnan(setting.reward) else f"{setting.reward:.4f}",
        str(setting.snr2),
        str(setting.effective),
        str(setting.relative),
        str(setting.per_evaluation),
        "-" if setting.kept is None else str(setting.kept),
        told,
    )


def _step_row(step: StepSignal) -> tuple[str, ...]:
    per_cost = Estimate(100 * step.snr2.value / step.cost, 100 * step.snr2.error / step.cost)
    cosine = "-" if step.cosine is None else str(step.cosine)
    return (
        str(step.step),
        f"{step.cost:g}",
        "-" if math.isnan(step.spread) else f"{step.spread:.3f}",
        str(step.snr2),
        str(per_cost),
        cosine,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, its columns padded to the same width."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(head), line(["-" * width for width in widths]), *map(line, rows)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
