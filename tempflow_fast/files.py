"""Files that are whole whenever they are there: written under another name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write a file or directory to; it takes the place of `path` once the block is done."""
    aside = path.with_name(f".part-{path.name}")
    if aside.is_dir():
        shutil.rmtree(aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    yield aside
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(aside, path)


def write_json(path: Path, data: object) -> None:
    """Writes indented JSON."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(data, indent=2) + "\n")
