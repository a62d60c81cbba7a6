"""results.jsonl: one line per finished run. It is small, committed, and enough to continue where no run is left."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tempflow_fast.files import write_text

from .methods import METHODS
from .plans import Plan

Result = dict[str, Any]
"""What `Plan.result` returns."""


def read_results(path: Path) -> list[Result]:
    """The finished runs, in the order in which they ended.

    Args:
        path: of the file; it need not exist.
    """
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def current(results: Iterable[Result]) -> list[Result]:
    """Those whose settings are still what they were: methods and recipes change, and older runs are others.

    Args:
        results: from `read_results`.
    """
    return [each for each in results if each["method"] in METHODS and Plan.of(each).digest == each["digest"]]


def is_done(results: Iterable[Result], plan: Plan) -> bool:
    """Whether a run has come as far as planned."""
    digest = plan.digest  # it takes long: the settings are checked
    return any(result["digest"] == digest and result["budget"] >= plan.budget for result in results)


def add_result(path: Path, result: Result) -> None:
    """Writes a result, in place of a shorter one of the same run.

    Args:
        path: of the file.
        result: to write.
    """
    kept = [each for each in read_results(path) if each["digest"] != result["digest"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(each) + "\n" for each in [*kept, result]))
