"""Files that are whole whenever they are there: written under another name, brought to the disk, then renamed."""

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
"""Begins the name of what is being written or removed."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` for a file or a new directory, which takes the place of `path` after the block.

    What stands at `path` afterwards is whole even if the machine loses power at any moment. A directory that is
    replaced goes a moment earlier than its successor comes.
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
    """Raises OSError if a file at `path` could not be written: before the work, not after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "Is a directory", str(path))
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:  # which names the file that was tried
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove(path: Path) -> None:
    """Removes a file or a directory, if it is there; a directory vanishes at once, however long its files take."""
    if path.is_dir():
        leaving = path if path.name.startswith(ASIDE) else path.with_name(f"{ASIDE}removed-{path.name}")
        if leaving != path:
            remove(leaving)
            os.rename(path, leaving)
        shutil.rmtree(leaving)
    path.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    """Writes indented JSON."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(data, indent=2) + "\n")


def _synchronize(path: Path) -> None:
    """Waits until the file or the directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
