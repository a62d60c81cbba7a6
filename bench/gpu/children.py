"""Programs that a check starts: each ends with its time limit, and so does everything that it has started itself."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_running: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    status: int
    stdout: str
    stderr: str
    in_time: bool

    @property
    def last_line(self) -> str:
        """The last line that it wrote, to stderr if it wrote anything there."""
        lines = [line.strip() for line in (self.stdout + "\n" + self.stderr).splitlines() if line.strip()]
        return lines[-1] if lines else f"status {self.status}, no output"


def run(
    command: Sequence[str | Path],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    shown: bool = False,
    folder: Path = ROOT,
) -> Ran:
    """Runs a program in a session of its own.

    A launcher such as compute-sanitizer has a child that would outlive it, and share the card with all later timings.

    Args:
        command: the program and its arguments.
        seconds: time limit; what the program has written until then is kept.
        environment: variables in addition to those of this process.
        shown: whether the output goes to this process's own instead of the result.
        folder: where it runs.
    """
    pipe = None if shown else subprocess.PIPE
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )
    _running.add(process)
    in_time = True
    try:
        stdout, stderr = process.communicate(timeout=max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        in_time = False
        _kill(process)
        stdout, stderr = process.communicate()
    finally:
        _kill(process)
        _running.discard(process)
    return Ran(process.returncode, stdout or "", stderr or "", in_time)


def kill_all() -> None:
    """Ends all programs that run now, for a process that is about to end without their results."""
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kills the sessions of a program and of all that it has started."""
    for pid in (*_descendants(process.pid), process.pid):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            if pid != process.pid:  # its own status is still wanted
                os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The children of a process and theirs; none where the system has no /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parents.setdefault(int(entry.read_text().rpartition(")")[2].split()[1]), []).append(int(entry.parent.name))
    found, open_ = [], [pid]
    while open_:
        children = parents.get(open_.pop(), [])
        found += children
        open_ += children
    return found
