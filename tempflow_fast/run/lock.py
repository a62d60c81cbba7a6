"""One run at a time in a directory, on any number of machines and on shared file systems.

A start claims the directory by creating the file `.lock-N`, where N is one more than the highest number there, so that
of two starts one fails. The highest number holds the directory; it is never removed, only followed by the next. File
systems need nothing but exclusive creation for this: locks of the kernel do not reach other machines everywhere.

While a run lives, it touches its file. A file is stale if its process is gone from this machine, or if nobody has
touched it for a minute; a start waits that long where it cannot tell. A run that ends sets its file's time to 0.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

from ..errors import fail
from ..files import LOCK

BEAT = 5.0
"""Seconds between two touches."""
STALE = 60.0
"""Seconds without a touch after which a run on another machine counts as gone."""
DEAD = ("Z", "X")
"""States of a process that has ended and that nobody has waited for."""


class DirectoryLock:
    """Inside this context, no other process holds the directory.

    Args:
        directory: is created.
        report: called with a sentence if the start has to wait.
    """

    def __init__(self, directory: Path, report: Callable[[str], None] = print) -> None:
        self._directory, self._report = directory, report
        self._number, self._ended = 0, threading.Event()

    def __enter__(self) -> DirectoryLock:
        while not self._claim(wait_until_free(self._directory, self._report) + 1):
            pass
        threading.Thread(target=self._beat, name="directory-lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OSError):  # the directory may have vanished
            os.utime(self._path, (0, 0))

    def check(self) -> None:
        """Checks that the directory is still held: this process may have been stopped for more than a minute.

        Raises:
            ValueError: if another process has taken it over.
        """
        if _highest(self._directory) != self._number:
            got = f"{str(self._directory)!r}, which another process has taken over while this one stood still"
            fail("DirectoryLock", "directory", "held by this process", got)

    @property
    def _path(self) -> Path:
        return _file(self._directory, self._number)

    def _claim(self, number: int) -> bool:
        """Creates the file of this number; False if somebody else was faster."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = _file(self._directory, number)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, json.dumps(_own_facts(self._directory)).encode())
        except OSError:  # a full disk: without facts, the next start would wait
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        if _highest(self._directory) != number:  # the number had been used and removed
            path.unlink()
            return False
        self._number = number
        for older in _numbers(self._directory):
            if older < number:
                _file(self._directory, older).unlink(missing_ok=True)
        return True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                os.utime(self._path)
            except FileNotFoundError:  # taken over
                return
            except OSError:  # a file server that is away for a moment
                continue


def wait_until_free(directory: Path, report: Callable[[str], None] = print) -> int:
    """Waits while it is not known whether another process holds a directory, at most a minute.

    Args:
        directory: it need not exist.
        report: called with a sentence if it has to wait.

    Returns:
        The highest number of a lock file; 0: there is none.

    Raises:
        ValueError: if another process holds the directory.
    """
    seen: tuple[int, float] | None = None
    while number := _highest(directory):
        try:
            facts, touched = _read(_file(directory, number))
        except FileNotFoundError:  # followed by the next number at this moment
            continue
        held = _is_held(directory, facts, touched)
        if held or (held is None and seen is not None and seen != (number, touched)):
            fail("DirectoryLock", "directory", "one that no other process is writing", _described(directory, facts))
        if held is False:
            break
        if seen is None:
            report(f"waiting for a sign of life: {_described(directory, facts)}, or has ended")
        seen = (number, touched)
        time.sleep(BEAT / 5)
    return number


def _is_held(directory: Path, facts: dict[str, Any], touched: float) -> bool | None:
    """Whether the process of a lock file still runs; None: that cannot be told at once."""
    if touched == 0:
        return False
    if facts.get("machine") == _machine():
        home = Path(facts["directory"])
        is_copy = home.exists() and directory.exists() and not home.samefile(directory)
        return not is_copy and _started(facts["pid"]) == facts["started"]
    with TemporaryFile(dir=directory) as probe:  # the clock of the file system, which may not be this machine's
        age = os.fstat(probe.fileno()).st_mtime - touched
    return False if age > STALE else None


def _described(directory: Path, facts: dict[str, Any]) -> str:
    return f"{str(directory)!r}, which process {facts.get('pid', '?')} on {facts.get('host', '?')} is writing"


def _read(path: Path) -> tuple[dict[str, Any], float]:
    """The facts in a lock file, and when it was touched. Opening it makes a file server tell the latest time."""
    with path.open("rb") as file:
        touched = os.fstat(file.fileno()).st_mtime
        try:
            facts = json.load(file)
        except ValueError:  # its process was killed before it wrote them
            facts = {}
    return facts if isinstance(facts, dict) else {}, touched


def _own_facts(directory: Path) -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": platform.node(),
        "pid": pid,
        "started": _started(pid),
        "machine": _machine(),
        "directory": str(directory.resolve()),
    }


def _machine() -> str:
    """Names what process numbers belong to: this start of this machine, and the container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """When a process was started, in the kernel's clock ticks; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in DEAD else fields[19]


def _file(directory: Path, number: int) -> Path:
    return directory / f"{LOCK}{number}"


def _numbers(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    endings = (name.removeprefix(LOCK) for name in os.listdir(directory) if name.startswith(LOCK))
    return [int(ending) for ending in endings if ending.isdecimal()]


def _highest(directory: Path) -> int:
    return max(_numbers(directory), default=0)
