"""Writes results as a dated JSON file and a Markdown page."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from .results import Figures, Result


def write(directory: Path, facts: dict[str, str], results: list[Result]) -> Path:
    """Writes gpu-<date>.json and .md into `directory`; returns the path of the page."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = directory / f"gpu-{time.strftime('%Y-%m-%d-%H%M%S')}"
    data = {"facts": facts, "results": [asdict(result) for result in results]}
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    page = stem.with_suffix(".md")
    page.write_text(markdown(facts, results))
    return page


def markdown(facts: dict[str, str], results: list[Result]) -> str:
    """The page: verdict, facts about the machine, one line per check, then the tables of figures."""
    counts = {status: sum(result.status == status for result in results) for status in ("pass", "FAIL", "skip")}
    lines = [f"# {facts.get('card', 'GPU')}: {'FAIL' if counts['FAIL'] else 'pass'}", ""]
    lines += [f"{counts['pass']} checks passed, {counts['FAIL']} failed, {counts['skip']} were skipped.", ""]
    lines += _table([{"fact": name, "value": value} for name, value in facts.items()])
    rows = [
        {"": result.status, "check": result.name, "seconds": f"{result.seconds:.1f}", "detail": result.detail}
        for result in results
    ]
    lines += ["", "## Checks", "", *_table(rows)]
    for result in results:
        if result.figures:
            lines += ["", f"## {result.name}", "", *_table(result.figures)]
    return "\n".join(lines) + "\n"


def _table(rows: list[Figures]) -> list[str]:
    columns = list(rows[0]) if rows else []
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)] if rows else []


def _text(value: float | str) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
