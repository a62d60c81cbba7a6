"""Reading prompts: text files, JSONL files with metadata, and data sets of Hugging Face's library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import fail, require, unknown

Entry = dict[str, Any]
HUGGING_FACE = "hf:"
"""Prefix of the sources that are data sets."""


def read_prompts(source: str, column: str = "prompt") -> list[Entry]:
    """Every prompt of a source with its metadata.

    Args:
        source: a `.jsonl` file (one object per line, such as GenEval's evaluation_metadata.jsonl), another file (one
            prompt per line; blank lines are skipped), or hf:PATH or hf:PATH:SPLIT for a data set by hub name or
            directory, including one that the library's `save_to_disk` wrote.
        column: the field that is the prompt; text files have no other field.

    Returns:
        Entries `{"prompt": text, ...}` in the source's order.

    Raises:
        ValueError: naming the source and the line: if there is no such file, prompt or field, or a line is not a JSON
            object.
    """
    if source.startswith(HUGGING_FACE):
        entries = _from_data_set(source.removeprefix(HUGGING_FACE), column)
    elif not Path(source).is_file():
        fail("read_prompts", "source", "an existing file or hf:NAME", repr(source))
    elif source.endswith(".jsonl"):
        entries = _from_jsonl(Path(source), column)
    else:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
        entries = [{"prompt": line.strip()} for line in lines if line.strip()]
    require(bool(entries), "read_prompts", "source", "one with at least one prompt", f"none in {source!r}")
    return entries


def _from_jsonl(path: Path, column: str) -> list[Entry]:
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            fail("read_prompts", f"line {number} of {path}", "JSON", f"{line.strip()[:60]!r}: {error}")
        place = f"line {number} of {path}"
        require(isinstance(entry, dict), "read_prompts", place, "a JSON object", line.strip()[:60])
        entries.append(_entry(entry, column, place))
    return entries


def _from_data_set(name: str, column: str) -> list[Entry]:
    try:
        import datasets
    except ImportError:
        fail("read_prompts", "source", "a file without the library datasets (pip install datasets)", f"hf:{name}")
    path, _, split = name.partition(":")
    is_single = (Path(path) / "state.json").is_file()  # as `save_to_disk` writes one set
    expected = "without a split, since this data set has none"
    require(not (is_single and split), "read_prompts", "source", expected, f"hf:{name}")
    try:
        rows = datasets.load_from_disk(path) if is_single else datasets.load_dataset(path, split=split or "train")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        fail("read_prompts", "source", "a data set that loads", f"{name!r}: {reason}")
    if column not in rows.column_names:
        unknown("read_prompts", "column", column, rows.column_names)
    # Numbers and texts only: decoding a column of images would take hours and be of no use to a reward.
    plain = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Value) or name == column]
    return [_entry(row, column, name) for row in rows.select_columns(plain)]


def _entry(row: Entry, column: str, where: str) -> Entry:
    """The row with its prompt as the field "prompt"."""
    if column not in row:
        unknown("read_prompts", f"column of {where}", column, row)
    is_text = isinstance(row[column], str) and bool(row[column].strip())
    require(is_text, "read_prompts", f"{column} of {where}", "a text", repr(row[column]))
    return {**row, "prompt": row[column]}
