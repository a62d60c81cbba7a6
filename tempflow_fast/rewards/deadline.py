"""Calls that may take only so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


class OverdueError(Exception):
    """A call that has not returned in time. It may still be at work."""


def within(seconds: float | None, call: Callable[[], Result]) -> Result:
    """What `call` returns or raises.

    It runs in a thread of its own, since nothing else can be left alone when time runs out. Python does not wait for
    that thread when it ends, as it would for one of a pool: what hangs must not hold up the end of a run.

    Args:
        seconds: for the call; None: as long as it takes.
        call: takes no arguments.

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
