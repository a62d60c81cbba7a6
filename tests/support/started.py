"""The command in processes that start at once: they are forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from support.runs import PATIENCE

PRELOADED = ["support.preloaded"]


class Started:
    """A `tempflow-fast` that runs.

    Args:
        arguments: of the command.
        output: file for everything that it prints.
        setup: called in the new process before the command.
    """

    def __init__(self, arguments: list[str], output: Path, setup: Callable[[], None] | None = None) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self.output = output
        self.process: BaseProcess = self._context.Process(target=_run, args=(arguments, output, setup))
        self.process.start()

    @property
    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.is_alive(), f"it ended on its own: {self.said}"
            assert time.monotonic() < end, f"timed out: {self.said}"
            time.sleep(0.02)

    def status(self, seconds: float = PATIENCE) -> int:
        """The exit status, or minus the signal that ended the process."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it still runs: {self.said}"
        return self.process.exitcode


@contextmanager
def started(arguments: list[str], output: Path, setup: Callable[[], None] | None = None) -> Iterator[Started]:
    """A command that is killed after the block, if it still runs then."""
    run = Started(arguments, output, setup)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.join()


def ignore_interrupts() -> None:
    """As a shell does for its jobs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(arguments: list[str], output: Path, setup: Callable[[], None] | None) -> None:
    from tempflow_fast.__main__ import command

    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if setup is not None:
        setup()
    sys.argv = ["tempflow-fast", *arguments]
    command()
