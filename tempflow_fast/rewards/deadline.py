"""Calls with a time limit, and in threads that do not keep Python from exiting."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from .. import interruption

Result = TypeVar("Result")


class OverdueError(Exception):
    """A call has not returned in time, or it was given up (see `interruption`). It may still be running."""


def within(seconds: float | None, call: Callable[[], Result]) -> Result:
    """Calls a function with a time limit.

    It runs in a separate thread, the only thing that can be abandoned when time runs out. Unlike a pool's, this thread
    is a daemon, so that a call that hangs does not keep Python from exiting.

    Args:
        seconds: for the call; None: no limit.
        call: takes no arguments.

    Returns:
        What the call returns; what it raises is raised.

    Raises:
        OverdueError: if time runs out, or the wait is given up.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="reward-call", daemon=True).start()
    end = math.inf if seconds is None else time.monotonic() + seconds
    while not wait([future], min(interruption.POLL, max(0.0, end - time.monotonic()))).done:
        if interruption.is_due():
            raise OverdueError("no result before the run had to end")
        if time.monotonic() >= end:
            raise OverdueError(f"no result within {seconds:g} s")
    return future.result()


class DaemonThread:
    """Calls functions one after another in a daemon thread.

    Python waits at its end for the threads of a `ThreadPoolExecutor`, whatever hangs in them.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def submit(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Hands over a call and returns at once.

        Args:
            call: the function.
            *arguments: of the call.
        """
        future: Future[Result] = Future()
        self._tasks.put((future, lambda: call(*arguments)))
        if self._thread.ident is None:
            self._thread.start()
        return future

    def close(self, wait: bool) -> None:
        """Ends the thread.

        Args:
            wait: for the calls that were handed over; otherwise those that have not started are dropped.
        """
        while not (wait or self._tasks.empty()):
            self._tasks.get()
        self._tasks.put(None)
        if wait and self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        while self._run(self._tasks.get()):
            pass

    @staticmethod
    def _run(task: tuple[Future[Any], Callable[[], Any]] | None) -> bool:
        """Makes one call; None ends the thread. A function of its own, so that the thread does not hold on to the
        arguments of the last call while it waits for the next."""
        if task is None:
            return False
        future, call = task
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        return True
