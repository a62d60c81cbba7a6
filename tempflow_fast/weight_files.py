"""Weights from safetensors files, which hold tensors and no code; any other file is one error that says what it is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import fail

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How torch's own files and bare pickles begin."""
LFS_POINTER = b"version https://git-lfs"
HUB_FILE = re.compile(r"[^/:]+/[^/:]+:.+")
"""owner/name:file"""


def from_hub(source: str) -> Path:
    """Returns a file of the hub, downloaded unless it is there already.

    Args:
        source: "owner/name:file".

    Raises:
        OSError: if the hub has no such file.
    """
    from huggingface_hub import hf_hub_download

    repository, _, file = source.partition(":")
    return Path(hf_hub_download(repository, file))


def conversion(source: str, output: str) -> str:
    """Returns advice: the command that makes a safetensors file of a pickle.

    Args:
        source: the pickle, a path or "owner/name:file".
        output: the new file.
    """
    command = shlex.join(("python", "-m", "tempflow_fast.convert", source, output))
    return f"; to make one of weights that you trust: {command}"


@contextmanager
def opened_safetensors(function: str, argument: str, file: Path) -> Iterator[Any]:
    """Opens a safetensors file, whose header and length are checked at once.

    Args:
        function: the caller, for the error.
        argument: its argument that named the file.
        file: an existing file.

    Yields:
        The file, as `safetensors.safe_open` gives it.

    Raises:
        ValueError: naming the file and what it is instead.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        fail(function, argument, "a safetensors file", f"{str(file)!r}, {_kind(file) or error}")


def _kind(file: Path) -> str | None:
    """What a file that is no safetensors file is; None if it cannot be read."""
    try:
        with file.open("rb") as opened:
            head = opened.read(256)
    except OSError:
        return None
    if not head:
        return "which is empty"
    if head.startswith(PICKLES):
        return f"a pickle, which could run code{conversion(str(file), str(file.with_suffix('.safetensors')))}"
    if head.startswith(LFS_POINTER):
        return "a Git LFS pointer instead of the weights"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "a text"
    return "cut off or damaged"
