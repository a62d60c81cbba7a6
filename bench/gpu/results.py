"""Runs checks and measurements within a time limit, and keeps one result for each."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

Figures = dict[str, float | str]
Status = Literal["pass", "FAIL", "skip"]


class Skip(Exception):  # noqa: N818  not an error: its text says why a check cannot be made here
    """Raised by a check that cannot be made on this machine."""


@dataclass(frozen=True)
class Outcome:
    """The report of a check that passes."""

    detail: str = ""
    figures: list[Figures] = field(default_factory=list)
    """Rows of a table, all with the same columns."""


@dataclass(frozen=True)
class Result:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    seconds: float
    figures: list[Figures] = field(default_factory=list)


class Session:
    """Runs checks one after another and keeps their results; a failed check does not stop the others."""

    def __init__(self, minutes: float = 10.0) -> None:
        self._minutes, self._end = minutes, time.monotonic() + 60 * minutes
        self._running: tuple[str, float] | None = None
        self.results: list[Result] = []

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit."""
        return self._end - time.monotonic()

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(result.status != "FAIL" for result in self.results)

    def end_in_time(self, finish: Callable[[], int], grace: float = 10.0) -> None:
        """Ends this process after the time limit, even if a check hangs.

        Programs that a check starts are limited to the time left; the check itself has `grace` seconds more.

        Args:
            finish: writes the report and returns the exit status.
            grace: seconds after the time limit.
        """

        def end() -> None:
            time.sleep(max(self.seconds_left + grace, 0))
            name, start = self._running or ("the report", self._end)
            detail = f"not done after {self._minutes:g} minutes"
            self.results.append(Result(name, "FAIL", detail, time.monotonic() - start))
            os._exit(finish())

        threading.Thread(target=end, daemon=True).start()

    def attempt(self, name: str, check: Callable[[], Outcome], needs: float = 0.0) -> Result:
        """Runs a check if enough time is left.

        Args:
            name: the line in the report.
            check: returns an Outcome, or raises.
            needs: seconds that it is expected to take.
        """
        start = time.monotonic()
        self._running = (name, start)
        print(f"-- {name} ...", flush=True)
        if self.seconds_left < needs:
            status, outcome = (
                "skip",
                Outcome(f"it takes about {needs:.0f} s, {max(self.seconds_left, 0):.0f} s are left"),
            )
        else:
            status, outcome = _tried(check)
        result = Result(name, status, outcome.detail, time.monotonic() - start, outcome.figures)
        self.results.append(result)
        print(f"{status:4}  {name} ({result.seconds:.1f} s) {result.detail}", flush=True)
        return result


def _tried(check: Callable[[], Outcome]) -> tuple[Status, Outcome]:
    try:
        return "pass", check()
    except Skip as reason:
        return "skip", Outcome(str(reason))
    except torch.OutOfMemoryError as error:
        return "skip", Outcome(f"not enough memory: {_first_line(error)}")
    except ImportError as error:
        return "skip", Outcome(f"{error}")
    except Exception as error:  # the report must name whatever went wrong
        return "FAIL", Outcome(f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
