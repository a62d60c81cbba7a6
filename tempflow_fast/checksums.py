"""Digests of files: directories that know when they are damaged, and what a model's files contain.

A directory with `checksums.sha256` lists the digest of each of its files, as `sha256sum -c checksums.sha256` reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import fail
from .files import read_json, write_json

CHECKSUMS = "checksums.sha256"
"""Name of the list in a directory."""
LENGTH = 16
"""Hexadecimal digits of a digest in a message or in a comparison: 64 bits."""
BLOCK = 1 << 20
"""Bytes that are read at once."""
SEAL = "# the lines above: "
"""Begins the last line of the list, a comment to `sha256sum`: it holds the digest of all others."""


def digest_of(data: object) -> str:
    """Returns a short digest of data.

    Args:
        data: what JSON can hold, or what has a `repr` that tells it; the order of keys does not matter.
    """
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=repr).encode()).hexdigest()[:LENGTH]


def write_checksums(directory: Path) -> None:
    """Writes the list of a directory's files and their digests into it, as the last file.

    Args:
        directory: complete but for the list.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    lines = "".join(f"{_file_digest(directory / name)}  {name}\n" for name in names)
    (directory / CHECKSUMS).write_text(f"{lines}{SEAL}{hashlib.sha256(lines.encode()).hexdigest()}\n", encoding="utf-8")


def damage(directory: Path) -> str | None:
    """Finds out whether a directory is as `write_checksums` left it; files that were added are allowed.

    Args:
        directory: read as a whole.

    Returns:
        The first thing that is wrong, such as "weights.safetensors is missing"; None if nothing is.
    """
    try:
        lines = (directory / CHECKSUMS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing (damaged, or of an older version)"
    except (OSError, UnicodeDecodeError) as error:
        return f"{CHECKSUMS} cannot be read ({getattr(error, 'strerror', None) or 'not a text'})"
    listed, _, seal = lines.rpartition(SEAL)
    if seal != f"{hashlib.sha256(listed.encode()).hexdigest()}\n":
        return f"{CHECKSUMS} is damaged"
    entries = [line.partition("  ")[::2] for line in listed.splitlines()]
    if any(Path(name).is_absolute() or ".." in Path(name).parts for _, name in entries):
        return f"{CHECKSUMS} lists a file outside the directory"
    return next(filter(None, (_difference(directory / name, name, expected) for expected, name in entries)), None)


def content_of(directory: Path) -> str | None:
    """Returns a digest of the files of a directory from its list, without reading them; None without a list.

    Args:
        directory: one that `write_checksums` has seen.
    """
    try:
        return hashlib.sha256((directory / CHECKSUMS).read_bytes()).hexdigest()[:LENGTH]
    except OSError:
        return None


def _difference(path: Path, name: str, expected: str) -> str | None:
    if path.exists() and not path.is_file():
        return f"{name} is not a file"
    try:
        return None if _file_digest(path) == expected else f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def _file_digest(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


class Digests:
    """Digests of large files that are read once: afterwards, their size, times and inode tell that they are the same.

    A copy, a download or an edit changes one of these, whatever it does to the time of modification, since nothing can
    set the time of a file's last change of status.

    Args:
        memory: JSON file that keeps the digests; None: they are kept by this object alone.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        if memory is not None and memory.is_file():
            try:
                known = read_json(memory)
            except ValueError:  # only costs the time to read the files again
                known = {}
            self._known = known if isinstance(known, dict) else {}

    def of(self, path: Path, suffixes: Sequence[str] = (".safetensors", ".json", ".txt", ".model")) -> str:
        """Returns a short digest of a file, or of the files of a model in a directory.

        Args:
            path: the file or directory.
            suffixes: of the files in a directory that count.

        Raises:
            ValueError: if there is no such file, or it cannot be read.
        """
        files = sorted(file for file in path.rglob("*") if file.suffix in suffixes) if path.is_dir() else [path]
        try:
            found = {file.relative_to(path).as_posix(): self._of_file(file) for file in files}
        except OSError as error:
            fail("Digests.of", "path", "readable files", f"{error.filename or path}: {error.strerror}")
        return digest_of(found)

    def save(self) -> None:
        """Writes the digests to `memory`."""
        if self._memory is not None:
            write_json(self._memory, self._known)

    def _of_file(self, path: Path) -> str:
        real = path.resolve()
        facts = real.stat()
        stamp = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        known = self._known.get(str(real))
        if not isinstance(known, list) or known[:-1] != stamp:
            known = self._known[str(real)] = [*stamp, _file_digest(real)]
        return str(known[-1])
