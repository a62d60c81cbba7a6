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
    """Gives a path beside `path` for a file or a new directory, which takes the place of `path` after the block."""
    aside = path.with_name(f".part-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    """Writes indented JSON."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(data, indent=2) + "\n")
