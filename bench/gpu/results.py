"""What was checked and measured: one result per attempt, within a time limit."""

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
    """What a check that holds has to say."""

    detail: str = ""
    figures: list[Figures] = field(default_factory=list)
    """Rows of a table, with the same columns each."""


@dataclass(frozen=True)
class Result:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    seconds: float
    figures: list[Figures] = field(default_factory=list)


class Session:
    """Runs checks one after another and keeps their results; none stops the others."""

    def __init__(self, minutes: float = 10.0) -> None:
        self._minutes, self._end = minutes, time.monotonic() + 60 * minutes
        self._running: tuple[str, float] | None = None
        self.results: list[Result] = []

    @property
    def seconds_left(self) -> float:
        """Until the time limit."""
        return self._end - time.monotonic()

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(result.status != "FAIL" for result in self.results)

    def end_in_time(self, finish: Callable[[], int], grace: float = 10.0) -> None:
        """Ends this process when the time limit is over, whatever hangs then; `finish` reports and gives the status.

        What a check starts has been told to end by the limit, the check itself has `grace` seconds more.
        """

        def end() -> None:
            time.sleep(max(self.seconds_left + grace, 0))
            name, start = self._running or ("the report", self._end)
            detail = f"not done when the {self._minutes:g} minutes were over"
            self.results.append(Result(name, "FAIL", detail, time.monotonic() - start))
            os._exit(finish())

        threading.Thread(target=end, daemon=True).start()

    def attempt(self, name: str, check: Callable[[], Outcome], needs: float = 0.0) -> Result:
        """Makes a check, unless fewer than the `needs` seconds that it is expected to take are left."""
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
    except Exception as error:  # the report is what this program is for: it names whatever went wrong
        return "FAIL", Outcome(f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
