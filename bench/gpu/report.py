"""Writes the results of a stage as JSON and as a Markdown page, and prints its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from .results import Figures, Result

REHEARSAL = "none: a rehearsal, whose figures mean nothing"
"""The card in reports of a rehearsal."""


def write(directory: Path, stage: str, facts: Mapping[str, str], results: Sequence[Result]) -> Path:
    """Writes <stage>.json and <stage>.md into `directory`; returns the path of the page."""
    directory.mkdir(parents=True, exist_ok=True)
    data = {"stage": stage, "facts": dict(facts), "results": [asdict(_measured(result)) for result in results]}
    page = directory / f"{stage}.md"
    page.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    page.write_text(markdown(stage, facts, results))
    return page


def _measured(result: Result) -> Result:
    """A result without figures that are no numbers, for which JSON has no word."""
    rows = [{name: value for name, value in row.items() if value == value} for row in result.figures]
    return replace(result, figures=rows)


def forget(directory: Path, stage: str) -> None:
    """Removes the report of an earlier run."""
    for suffix in (".json", ".md"):
        (directory / f"{stage}{suffix}").unlink(missing_ok=True)


def add_failure(directory: Path, stage: str, reason: str) -> str:
    """Adds to a report that its stage did not end by itself; returns the reason."""
    path = directory / f"{stage}.json"
    data = json.loads(path.read_text()) if path.exists() else {"facts": {}, "results": []}
    results = [Result(**result) for result in data["results"]]
    write(directory, stage, data["facts"], [*results, Result("the stage", "FAIL", reason)])
    return reason


def verdict(results: Sequence[Result]) -> str:
    """FAIL if a check failed, "incomplete" if one was skipped."""
    statuses = {result.status for result in results}
    return "FAIL" if "FAIL" in statuses else "incomplete" if "skip" in statuses or not statuses else "pass"


def markdown(stage: str, facts: Mapping[str, str], results: Sequence[Result]) -> str:
    """The page: verdict, facts about the machine, one line per check, then the tables of figures."""
    counts = {status: sum(result.status == status for result in results) for status in ("pass", "FAIL", "skip")}
    lines = [f"# {stage}, {facts.get('card', 'GPU')}: {verdict(results)}", ""]
    lines += [f"{counts['pass']} checks passed, {counts['FAIL']} failed, {counts['skip']} were skipped.", ""]
    lines += table([{"fact": name, "value": value} for name, value in facts.items()])
    rows: list[Figures] = [
        {"": result.status, "check": result.name, "seconds": f"{result.seconds:.1f}", "detail": result.detail}
        for result in results
    ]
    lines += ["", "## Checks", "", *table(rows), *_of_figures(results)]
    return "\n".join(lines) + "\n"


def shown(results: Sequence[Result]) -> str:
    """The tables of figures for a terminal."""
    return "\n".join(_of_figures(results)).strip()


def _of_figures(results: Sequence[Result]) -> list[str]:
    lines = []
    for name in dict.fromkeys(result.table for result in results if result.figures):
        rows = merged([row for result in results if result.table == name for row in result.figures])
        lines += ["", f"## {name}", "", *table(rows)]
    return lines


def merged(rows: Sequence[Figures]) -> list[Figures]:
    """Rows with the same texts as one row, since several checks may measure columns of it."""
    found: dict[tuple[tuple[str, str], ...], Figures] = {}
    for row in rows:
        names = tuple((column, value) for column, value in row.items() if isinstance(value, str))
        found.setdefault(names, {}).update(row)
    return list(found.values())


def table(rows: Sequence[Figures]) -> list[str]:
    """The lines of a Markdown table with all columns of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)] if rows else []


def _text(value: float | str) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
