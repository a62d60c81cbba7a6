"""What can happen to a file, and copies of a run directory to which it happens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

FOREIGN = b"\x89PNG\r\n\x1a\n of another program"


def _flipped(path: Path) -> None:
    """One bit in the middle: in a text that of a quotation mark, since a digit that changes leaves its line valid."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[max(middle, content.find(b'"', middle))] ^= 1
    _replaced(path, bytes(content))


def _replaced(path: Path, content: bytes) -> None:
    """A new file, since the copies of a run share theirs."""
    path.unlink()
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: _replaced(path, b""),
    "cut": lambda path: _replaced(path, path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": _flipped,
    "wrong JSON": lambda path: _replaced(path, b'[{"iteration": {}, "config": 7}]\n'),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "unreadable": lambda path: (path.unlink(), path.symlink_to(path.name)),  # a loop: also root cannot read it
    "foreign": lambda path: _replaced(path, FOREIGN),
}


def files_of(directory: Path) -> list[str]:
    """Every file below a directory."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def copied(run: Path, to: Path) -> Path:
    """A copy that shares the files which are replaced and never changed; files that grow are its own."""

    def copy(source: str, target: str) -> None:
        (shutil.copy2 if source.endswith(".jsonl") else os.link)(source, target)

    return Path(shutil.copytree(run, to, copy_function=copy))
