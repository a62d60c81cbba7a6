"""Reading prompts: from the name of a file or a data set to entries."""

from __future__ import annotations

from pathlib import Path

from ..errors import fail, require
from .data_sets import HUGGING_FACE, rows_of_data_set
from .entries import PROMPT, Entry, checked_entry
from .files import rows_of_file


def read_prompts(source: str, column: str = PROMPT) -> list[Entry]:
    """Every prompt of a source with its metadata.

    Args:
        source: a file that `rows_of_file` reads, or hf:PATH or hf:PATH:SPLIT for a data set by hub name or directory,
            including one that the library's `save_to_disk` wrote. Paths of source images are relative to the file, or
            to the working directory for a data set.
        column: the field that is the prompt; texts have no fields.

    Returns:
        Entries `{"prompt": text, ...}` in the source's order.

    Raises:
        ValueError: naming the source and the line: if there is no such file, prompt or field, or an entry cannot be
            used (see `checked_entry`).
    """
    directory = Path()
    if source.startswith(HUGGING_FACE):
        rows = rows_of_data_set(source, column)
    elif Path(source).is_file():
        rows, directory = rows_of_file(Path(source), column), Path(source).parent
    else:
        is_directory = " (a directory)" if Path(source).is_dir() else ""
        fail("read_prompts", "source", "an existing file or hf:NAME", f"{source!r}{is_directory}")
    entries = [checked_entry(row, column, place, directory) for place, row in rows]
    require(bool(entries), "read_prompts", "source", "one with at least one prompt", f"none in {source!r}")
    return entries
