"""Calls with a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


class OverdueError(Exception):
    """A call has not returned in time. It may still be running."""


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
        OverdueError: if time runs out.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="reward-call", daemon=True).start()
    if not wait([future], seconds).done:
        raise OverdueError(f"no result within {seconds:g} s")
    return future.result()
