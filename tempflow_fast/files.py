"""Atomic file writes: a file is written under another name, synchronised to the disk, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from tempfile import TemporaryFile

ASIDE = ".part-"
"""Prefix of the names of files that are being written or removed."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a path next to `path` for a file or a new directory, which replaces `path` after the block.

    `path` is complete afterwards even if the machine loses power at any moment. A directory that is replaced is removed
    a moment before its replacement is there.

    Args:
        path: the file or directory to write; its parent directories are created.
    """
    aside = path.with_name(f"{ASIDE}{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(aside)
    try:
        yield aside
        for part in (*aside.rglob("*"), aside):
            _synchronize(part)
        if aside.is_dir():
            remove(path)
        os.replace(aside, path)
        _synchronize(path.parent)
    finally:
        remove(aside)


def check_writable(path: Path) -> None:
    """Checks before the work, rather than after it, that a file can be written.

    Args:
        path: the file; its parent directories are created.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "Is a directory", str(path))
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:  # it names the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_taken(path: Path) -> bool:
    """Returns whether a path is a file, or a directory with something in it.

    Args:
        path: the file or directory.
    """
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def remove(path: Path) -> None:
    """Removes a file or a directory, if it exists. A directory disappears at once, however long its files take.

    Args:
        path: the file or directory.
    """
    if path.is_dir():
        leaving = path if path.name.startswith(ASIDE) else path.with_name(f"{ASIDE}removed-{path.name}")
        if leaving != path:
            remove(leaving)
            os.rename(path, leaving)
        shutil.rmtree(leaving)
    path.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    """Writes indented JSON atomically.

    Args:
        path: the file.
        data: anything that JSON can hold.
    """
    with written_aside(path) as aside:
        aside.write_text(json.dumps(data, indent=2) + "\n")


def _synchronize(path: Path) -> None:
    """Waits until the file or the directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
