"""What was expected of an H100 before anything had run on a card, next to what the reports say.

python -m bench.gpu.predictions DIR    writes DIR/predictions.md from the reports in DIR
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report import REHEARSAL, merged, table
from .results import Figures

COUNTED = "kernels and bytes on tensors without data (bench/call_cost.py), at an H100's rates"
FLOOR = "bytes and instructions (docs/gpu.md, roofline)"
CPU = "the same run on a CPU"

Tables = dict[tuple[str, str], list[Figures]]
"""(stage, table) -> rows."""


@dataclass(frozen=True)
class Place:
    """A figure in the reports."""

    stage: str
    table: str
    row: Mapping[str, str]
    """Texts of its row."""
    column: str

    def read(self, tables: Tables) -> float | None:
        """Its value, if it was measured."""
        for row in tables.get((self.stage, self.table), []):
            if all(row.get(name) == value for name, value in self.row.items()) and self.column in row:
                return float(row[self.column])
        return None


@dataclass(frozen=True)
class Prediction:
    """A figure, or the ratio of two, and the range in which it was expected."""

    what: str
    place: Place
    low: float
    high: float
    source: str
    over: Place | None = None
    """The denominator, if it is a ratio."""

    def measured(self, tables: Tables) -> float | None:
        """The figure, if all of it was measured."""
        value = self.place.read(tables)
        if value is None or self.over is None:
            return value
        other = self.over.read(tables)
        return value / other if other else None


def _call(weights: str, column: str) -> Place:
    return Place("calls", "one call, ms", {"weights": weights, "rows": "24"}, column)


def _iteration(name: str, column: str = "seconds") -> Place:
    return Place("iteration", "iterations", {"iteration": name}, column)


def _op(op: str, dtype: str, low: float, high: float, size: str = "24 x 65536") -> Iterator[Prediction]:
    for body in ("native", "triton"):
        place = Place("ops", "ops", {"op": op, "dtype": dtype, "R x D": size}, f"{body} us")
        yield Prediction(f"{op}, {dtype}, {body}, us", place, low, high, FLOOR)


PAPER = _iteration("the paper's structure")
PREDICTIONS = (
    *_op("guided_velocity", "float32", 5.6, 7.7),
    *_op("euler_step", "float32", 7.5, 10),
    *_op("branch_step", "float32", 19, 22),
    *_op("branch_step", "bfloat16", 28, 33),
    *_op("log_prob", "float32", 5.6, 9),
    *_op("policy_loss, unchanged policy", "float32", 23, 45),
    *_op("policy_loss, both passes", "float32", 41, 65),
    Prediction("call of 24 rows, fp32 adapter, ms", _call("fp32 adapter", "eager"), 405, 495, COUNTED),
    Prediction("call of 24 rows, 16-bit adapter, ms", _call("16-bit adapter", "eager"), 324, 396, COUNTED),
    Prediction("call of 24 rows, merged, ms", _call("merged", "eager"), 292, 356, COUNTED),
    Prediction("call of 24 rows, merged and compiled, ms", _call("merged", "compiled"), 207, 253, COUNTED),
    Prediction(
        "a captured call of 24 rows over an eager one",
        _call("fp32 adapter", "eager, captured"),
        0.95,
        1.0,
        "450 ms of device work against 25 to 30 ms of launches that overlap it",
        over=_call("fp32 adapter", "eager"),
    ),
    Prediction(
        "the paper's structure over ours, as trained, eager",
        PAPER,
        1.35,
        1.45,
        "rows and calls counted, at the rates of the calls above",
        over=_iteration("ours, as trained"),
    ),
    Prediction(
        "the paper's structure over ours, merged and compiled",
        PAPER,
        2.3,
        2.8,
        "the same",
        over=_iteration("ours, merged, compiled"),
    ),
    Prediction(
        "measured peak of memory over the estimate",
        _iteration("ours, merged", "peak GiB"),
        0.9,
        1.25,
        "the estimate leaves out workspaces and what an allocator loses",
        over=_iteration("estimate", "peak GiB"),
    ),
    Prediction(
        "shapes, mean reward of the first ten", Place("learning", "shapes learns", {}, "first ten"), 0.63, 0.71, CPU
    ),
    Prediction(
        "shapes, mean reward of iterations 51 to 60",
        Place("learning", "shapes learns", {}, "last ten"),
        0.75,
        0.86,
        CPU,
    ),
)
"""For one H100 SXM. On another card only the ratios and the rewards are comparable."""


def write(directory: Path) -> Path:
    """Writes predictions.md next to the reports; returns its path."""
    rows = compared(directory)
    text = (
        "Expected before anything had run on a card, for one H100 SXM, next to the reports in this folder. "
        "On another card only ratios and rewards are judged."
    )
    page = directory / "predictions.md"
    page.write_text("\n".join(["# Predicted and measured", "", text, "", *table(rows)]) + "\n")
    return page


def compared(directory: Path) -> list[Figures]:
    """A row per prediction."""
    tables, comparable = tables_of(directory), all("H100" in card for card in _cards(directory))
    return [_row(each, each.measured(tables), comparable) for each in PREDICTIONS]


def _row(prediction: Prediction, measured: float | None, comparable: bool) -> Figures:
    expected = f"{prediction.low:g} to {prediction.high:g}"
    row: Figures = {"figure": prediction.what, "predicted": expected, "measured": "not measured", "": ""}
    if measured is not None:
        inside = prediction.low <= measured <= prediction.high
        row |= {"measured": f"{measured:.4g}", "": "as predicted" if inside else "differs"}
        if not comparable and prediction.over is None and prediction.source != CPU:
            row[""] = "another card"
    return row | {"the prediction is from": prediction.source}


def _cards(directory: Path) -> set[str]:
    return {report["facts"].get("card", "") for report in _measured(directory)}


def _measured(directory: Path) -> Iterator[dict[str, Any]]:
    """The reports of runs on a card; the figures of a rehearsal, also of one on a card, mean nothing."""
    for path in sorted(directory.glob("*.json")):
        report: dict[str, Any] = json.loads(path.read_text())
        facts = report["facts"]
        if facts.get("device", "").startswith("cuda") and not facts.get("card", "").startswith(REHEARSAL):
            yield report


def tables_of(directory: Path) -> Tables:
    """The figures of all reports in a folder, by stage and table."""
    found: Tables = {}
    for report in _measured(directory):
        for result in report["results"]:
            found.setdefault((report["stage"], result["table"]), []).extend(result["figures"])
    return {place: merged(rows) for place, rows in found.items()}


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
