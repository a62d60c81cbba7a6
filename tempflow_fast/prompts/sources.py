"""Reading prompts: text files, JSONL files with metadata, data sets of Hugging Face's library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import unknown

Entry = dict[str, Any]
HUGGING_FACE = "hf:"


def read_prompts(source: str, column: str = "prompt") -> list[Entry]:
    """Every prompt of a source with its metadata, in the source's order: `{"prompt": text, ...}`.

    Args:
        source: a `.jsonl` file (an object a line, such as GenEval's evaluation_metadata.jsonl), another file (a prompt
            a line, blank lines left out), or hf:PATH or hf:PATH:SPLIT for a data set by hub name or directory, also one
            that the library's `save_to_disk` wrote.
        column: the field that is the prompt; text files have no other.

    Raises:
        ValueError: naming the source and the line: no such file, no prompts, a line that is no object, no such field.
    """
    if source.startswith(HUGGING_FACE):
        entries = _from_data_set(source.removeprefix(HUGGING_FACE), column)
    elif not Path(source).is_file():
        raise ValueError(f"read_prompts: source must be a file or hf:NAME, got {source!r}, which is not there")
    elif source.endswith(".jsonl"):
        entries = _from_jsonl(Path(source), column)
    else:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
        entries = [{"prompt": line.strip()} for line in lines if line.strip()]
    if not entries:
        raise ValueError(f"read_prompts: source must hold at least one prompt, got none in {source!r}")
    return entries


def _from_jsonl(path: Path, column: str) -> list[Entry]:
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"read_prompts: line {number} of {path} must be JSON: {error}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"read_prompts: line {number} of {path} must be an object, got {line.strip()[:60]}")
        entries.append(_entry(entry, column, f"line {number} of {path}"))
    return entries


def _from_data_set(name: str, column: str) -> list[Entry]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"read_prompts: hf:{name} needs the library: pip install datasets") from error
    path, _, split = name.partition(":")
    try:
        if (Path(path) / "state.json").is_file():  # one set as its `save_to_disk` leaves it, which has no splits
            if split:
                raise ValueError(f"it has no splits, got {split}")
            rows = datasets.load_from_disk(path)
        else:
            rows = datasets.load_dataset(path, split=split or "train")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"read_prompts: cannot load the data set {name!r}: {reason}") from error
    if column not in rows.column_names:
        unknown("read_prompts", "column", column, rows.column_names)
    # Numbers and texts only: decoding a column of images would take hours and is no use to a reward.
    plain = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Value) or name == column]
    return [_entry(row, column, name) for row in rows.select_columns(plain)]


def _entry(row: Entry, column: str, where: str) -> Entry:
    """The row with its prompt under "prompt"."""
    if column not in row:
        unknown("read_prompts", f"column of {where}", column, row)
    if not isinstance(row[column], str) or not row[column].strip():
        raise ValueError(f"read_prompts: {column} of {where} must be a text, got {row[column]!r}")
    return {**row, "prompt": row[column]}
