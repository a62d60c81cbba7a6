"""Files that are complete or absent, whatever ends the process: atomic writes, lines that are appended, JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EIO, EISDIR
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from .errors import fail
from .text import shortened

ASIDE = ".part-"
"""Prefix of the names of files that are being written or removed."""
LOCK = ".lock-"
"""Prefix of the names of files that say which process writes a directory, see `run.lock`."""
BLOCK = 1 << 16
"""Bytes that are read at once from the end of a file."""


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a path next to `path` for a file or a new directory, which replaces `path` after the block.

    `path` is complete afterwards even if the machine loses power at any moment. A directory that is replaced is removed
    a moment before its replacement is there.

    Args:
        path: the file or directory to write; its parent directories are created.

    Raises:
        OSError: naming `path`, if it cannot be written: what was there before is left as it was.
    """
    aside = path.with_name(f"{ASIDE}{path.name}")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(aside)
            yield aside
            for part in (*aside.rglob("*"), aside):
                _synchronize(part)
            if aside.is_dir():
                remove(path)
            os.replace(aside, path)
            _synchronize(path.parent)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            remove(aside)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside this context, an error of the system is an OSError that names `path`; often it names no file at all.

    Args:
        path: what is written or read.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by a library, with a sentence of its own
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except SafetensorError as error:  # the library's only error, also for a full disk
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number.group(1))
        raise OSError(code or EIO, os.strerror(code or EIO), str(path)) from error


def check_writable(path: Path) -> None:
    """Checks before the work, rather than after it, that a file can be written.

    Args:
        path: the file; its parent directories are created.

    Raises:
        OSError: if it cannot be written.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "Is a directory")
        TemporaryFile(dir=path.parent).close()


def is_taken(path: Path) -> bool:
    """Returns whether a path is a file, or a directory with something in it other than interrupted writes and locks.

    Args:
        path: the file or directory.
    """
    if not path.is_dir():
        return path.exists()
    return any(not entry.name.startswith((ASIDE, LOCK)) for entry in path.iterdir())


def is_aside(path: Path) -> bool:
    """Returns whether a path is one that `written_aside` or `remove` leaves when the process is killed.

    Args:
        path: the file or directory.
    """
    return path.name.startswith(ASIDE)


def remove(path: Path) -> None:
    """Removes a file or a directory, if it exists. A directory disappears at once, however long its files take.

    Args:
        path: the file or directory; of a link, only the link is removed.
    """
    if path.is_dir() and not path.is_symlink():
        leaving = path if is_aside(path) else path.with_name(f"{ASIDE}removed-{path.name}")
        if leaving != path:
            remove(leaving)
            os.rename(path, leaving)
        shutil.rmtree(leaving)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    """Writes indented JSON atomically.

    Args:
        path: the file.
        data: anything that JSON can hold.
    """
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8.

    Args:
        path: the file.
        text: its contents.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def parsed_json(text: str | bytes) -> Any:
    """Reads JSON in which each object has each key once; the json library keeps the last of equal ones without a word.

    Args:
        text: the JSON.

    Raises:
        ValueError: if it is something else.
        RecursionError: if it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_without_repetition)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key twice: {shortened([name for name, _ in pairs])}")
    return found


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.

    Returns:
        What it holds.

    Raises:
        ValueError: naming the file and the reason, if it cannot be read or is not JSON.
    """
    try:
        return parsed_json(path.read_bytes())
    except OSError as error:
        got = error.strerror
    except (ValueError, RecursionError) as error:
        got = f"other content: {shortened(error)}"
    fail("read_json", str(path), "a readable JSON file", got)


def append_line(path: Path, data: object) -> None:
    """Appends a line of JSON after the last complete line of a file; what follows that one is cut off.

    Args:
        path: the file, which is made if it does not exist.
        data: anything that JSON can hold.

    Raises:
        OSError: naming the file, if it cannot be written; no part of the line is left then.
    """
    append_lines(path, [data])


def append_lines(path: Path, lines: list[Any]) -> None:
    """Appends lines of JSON; see `append_line`.

    Args:
        path: the file, which is made if it does not exist.
        lines: of anything that JSON can hold.

    Raises:
        OSError: naming the file, if it cannot be written; nothing is appended then.
    """
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with naming(path), path.open("a+b", buffering=0) as file:  # a buffer would be written again when it is closed
        end = _end_of_lines(file)
        file.truncate(end)
        try:
            left = memoryview(text.encode())
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def read_lines(path: Path) -> list[Any]:
    """Reads lines of JSON.

    Args:
        path: the file.

    Returns:
        What each complete line holds, None for a line that is not JSON; nothing for a file that does not exist.

    Raises:
        OSError: if the file exists and cannot be read.
    """
    if not path.exists() and not path.is_symlink():
        return []
    with naming(path):
        return [_parsed(line) for line in path.read_bytes().split(b"\n")[:-1]]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _end_of_lines(file: FileIO) -> int:
    """The place after the last line end, searched from the end of the file."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def _synchronize(path: Path) -> None:
    """Waits until the file or the directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
