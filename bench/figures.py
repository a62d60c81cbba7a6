"""What pytest-benchmark wrote, by section and row of the page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import op_cases


@dataclass(frozen=True)
class Figure:
    """One comparison: best seconds of every candidate, and what else was noted."""

    row: str
    seconds: dict[str, float]
    facts: dict[str, Any]

    def ratio(self, *others: str) -> float:
        """How much faster the first candidate is than the fastest of the others that was timed; NaN if none was."""
        first, *_ = self.seconds.values()
        times = [self.seconds[name] for name in others if name in self.seconds]
        return min(times) / first if times else float("nan")

    @property
    def best_compiled(self) -> float:
        """How much faster than torch.compile at its best."""
        return self.ratio(*op_cases.COMPILERS)


class Figures:
    """All of one run."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text())
        self.machine: dict[str, str] = data["machine_info"]["facts"]
        self.date: str = data["datetime"][:10]
        self._sections: dict[str, list[Figure]] = {}
        for each in data["benchmarks"]:
            facts = dict(each["extra_info"])
            section, row, seconds = (facts.pop(name) for name in ("section", "row", "seconds"))
            self._sections.setdefault(section, []).append(Figure(row, seconds, facts))

    def section(self, name: str) -> list[Figure]:
        """Its rows in the order in which they were measured; none if it was not."""
        return self._sections.get(name, [])

    def rows(self, section: str, *words: str) -> list[Figure]:
        """Those with all of the words in their name; LookupError if there is none."""
        found = [each for each in self.section(section) if all(word in each.row for word in words)]
        if not found:
            raise LookupError(f"no figure in {section!r} with {words}")
        return found

    def row(self, section: str, *words: str) -> Figure:
        """The first of them."""
        return self.rows(section, *words)[0]
