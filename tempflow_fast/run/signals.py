"""What signals ask of a run.

    SIGINT (Ctrl-C)     end after this iteration, save and score; again: do not wait for it, and do not score
    SIGTERM, SIGHUP     end with a checkpoint within the grace time, without scoring: the machine is being taken away
    SIGUSR1             save a checkpoint and continue

An iteration that has not ended after half of the grace time is given up, which leaves the other half for saving. It has
changed no weight by then, and the run repeats it when it resumes. An update of the weights that has begun is finished.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from .. import interruption

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVES = signal.SIGUSR1
ECHO = 0.5
"""Seconds after an interruption in which another one is ignored, so that the first can end the process in order."""


class StopRequest:
    """Inside this context, signals are requests; without it, `made` may be set by a program.

    Signals that the process ignores, as a job in the background ignores Ctrl-C, stay ignored. The handlers of before
    come back at the end.

    Args:
        grace_seconds: time between a signal and the end of the process.
        is_alone: whether this is the only process. Among several, the launcher ends all of them soon after it has
            passed on a signal, so nothing is scored; and network calls are not given up, since others take part.
        speaks: whether to say on stderr what happens.
    """

    def __init__(self, grace_seconds: float = 10.0, is_alone: bool = True, speaks: bool = True) -> None:
        self.made = False
        """Whether the run should end."""
        self.hurried = False
        """Whether it should end without scoring."""
        self.asks_for_checkpoint = False
        """Whether a checkpoint should be saved."""
        self._grace, self._is_alone, self._speaks = grace_seconds, is_alone, speaks
        self._first: int | None = None
        self._last, self._num_stops, self._is_deferring = 0.0, 0, False
        self._previous: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """The exit status: 128 plus the number of the first signal that asked for the end, as in shells; else 0."""
        return 0 if self._first is None else 128 + self._first

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (*STOPS, SAVES):
                # None: a handler that was not installed by Python.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        interruption.withdraw()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside this context, two signals only set the attributes. Outside it, each is a KeyboardInterrupt."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
            interruption.withdraw()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == SAVES:
            self.asks_for_checkpoint = True
            return
        now = time.monotonic()
        if self._num_stops and (not self._is_alone or (not self._is_deferring and now - self._last < ECHO)):
            return
        self._first, self._last = number if self._first is None else self._first, now
        self._num_stops += 1
        self.made = True
        self.hurried |= number != signal.SIGINT or self._num_stops > 1 or not self._is_alone
        if not self._is_deferring or self._num_stops > 2:
            raise KeyboardInterrupt
        interruption.ask(self._grace / 2 if self._num_stops == 1 else 0.0, calls_too=self._is_alone)
        self._say()

    def _say(self) -> None:
        if self._num_stops > 1:
            self._write("the iteration is given up; once more ends the process without saving")
        elif self.hurried:
            self._write("the weights will be saved, but not scored")
        else:
            self._write("the weights will be saved and scored; press Ctrl-C again to save only")

    def _write(self, sentence: str) -> None:
        if self._speaks:  # not by print: the signal may have come in the middle of another one
            os.write(2, f"\nstopping: {sentence}\n".encode())
