"""Runs the checks of a stage within its time limit, and keeps one result for each."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from . import children

Figures = dict[str, float | str]
"""A row of a table: texts name what was measured, numbers are figures."""
Status = Literal["pass", "FAIL", "skip"]


class Skip(Exception):  # noqa: N818  not an error: its text says why a check cannot be made here
    """Raised by a check that cannot be made on this machine."""


@dataclass(frozen=True)
class Outcome:
    """The report of a check."""

    detail: str = ""
    figures: list[Figures] = field(default_factory=list)
    problem: str = ""
    """What failed, if the figures are only those that were measured before."""


@dataclass(frozen=True)
class Check:
    """One line of the report before it is made."""

    name: str
    run: Callable[[], Outcome]
    needs: float = 0.0
    """Seconds that it is expected to take; it starts only if they are left."""
    table: str = ""
    """The table of its figures; "": one of its own. Rows of one table with the same texts become one row."""
    packages: tuple[str, ...] = ()
    """What it imports in addition to torch."""


@dataclass(frozen=True)
class Result:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    seconds: float = 0.0
    figures: list[Figures] = field(default_factory=list)
    table: str = ""


class Session:
    """Runs checks one after another; a failed one does not stop the others, and the time limit ends them all.

    Args:
        minutes: time limit.
        save: called with all results after every check, and when the limit ends the process.
    """

    def __init__(self, minutes: float = 9.0, save: Callable[[list[Result]], None] = lambda results: None) -> None:
        self._minutes, self._end, self._save = minutes, time.monotonic() + 60 * minutes, save
        self._running: tuple[str, float] | None = None
        self._pending: list[Check] = []
        self.results: list[Result] = []

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit."""
        return self._end - time.monotonic()

    def status(self, require: bool = False) -> int:
        """The exit status: 1 if a check failed, or with `require` if one was skipped."""
        bad = {"FAIL", "skip"} if require else {"FAIL"}
        return int(any(result.status in bad for result in self.results))

    def end_in_time(self, require: bool = False, grace: float = 10.0) -> None:
        """Ends this process after the time limit, even if a check hangs; the report says what is missing.

        Programs that a check starts are limited to the time left; the check itself has `grace` seconds more.

        Args:
            require: as for `status`.
            grace: seconds after the time limit.
        """

        def end() -> None:
            time.sleep(max(self.seconds_left + grace, 0))
            late = f"not done after {self._minutes:g} minutes"
            if self._running is not None:
                name, start = self._running
                self.results.append(Result(name, "FAIL", late, time.monotonic() - start))
            self.results += [Result(check.name, "skip", f"not run: {late}") for check in self._pending]
            self._save(self.results)
            children.kill_all()
            os._exit(self.status(require))

        threading.Thread(target=end, daemon=True).start()

    def run(self, checks: Sequence[Check]) -> None:
        """Runs checks in their order."""
        self._pending += checks
        while self._pending:
            self._attempt(self._pending.pop(0))

    def _attempt(self, check: Check) -> None:
        start = time.monotonic()
        self._running = (check.name, start)
        print(f"-- {check.name} ...", flush=True)
        if self.seconds_left < check.needs:
            detail = f"not run: it takes about {check.needs:.0f} s, {max(self.seconds_left, 0):.0f} s are left"
            status, outcome = "skip", Outcome(detail)
        else:
            status, outcome = _tried(check)
        seconds = time.monotonic() - start
        self._running = None
        detail = outcome.problem or outcome.detail
        self.results.append(Result(check.name, status, detail, seconds, outcome.figures, check.table or check.name))
        print(f"{status:4}  {check.name} ({seconds:.1f} s) {detail}", flush=True)
        self._save(self.results)


def _tried(check: Check) -> tuple[Status, Outcome]:
    try:
        require_packages(check.packages)
        outcome = check.run()
        return "FAIL" if outcome.problem else "pass", outcome
    except Skip as reason:
        return "skip", Outcome(str(reason))
    except Exception as error:  # the report must name whatever went wrong
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
            return "skip", Outcome(f"not enough memory: {first_line(error)}")
        return "FAIL", Outcome(f"{type(error).__name__}: {first_line(error)}")


def require_packages(names: Sequence[str]) -> None:
    """Refuses a check whose packages cannot be imported.

    Raises:
        Skip: naming all of them.
    """
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})" if error.name != name else name)
    if missing:
        raise Skip(f"it needs {', '.join(missing)}: install it, or put its wheel into a folder and pass --wheels")


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
