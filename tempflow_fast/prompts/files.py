"""Files of prompts -> rows. The end of a file's name says how it is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import fail, require, unknown
from ..files import parsed_json
from ..text import shortened

Rows = Iterator[tuple[str, Any]]
"""The place of each row, for messages, and the row."""


def rows_of_file(path: Path, column: str) -> Rows:
    """The rows of a file, in its order; blank lines are skipped.

    Args:
        path: an existing file, in UTF-8 with or without a byte-order mark. `.txt` and names without an ending: one
            prompt per line; `.jsonl`, `.ndjson`: one object per line; `.json`: a list of objects or texts; `.csv`,
            `.tsv`: a table whose first row has the names of the fields.
        column: the field for prompts that are only a text.

    Raises:
        ValueError: naming the file and the line, if it cannot be read like this.
    """
    if path.suffix.lower() not in READERS:
        unknown("read_prompts", "the ending of the source", path.suffix, filter(None, READERS), f", for {path}")
    return READERS[path.suffix.lower()](_text(path), path, column)


def _text(path: Path) -> str:
    """The file as a text with line ends as they are."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        fail("read_prompts", f"{path}", "a text in UTF-8", f"byte {content[error.start]:#04x} in line {line}")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        fail("read_prompts", f"{path}", "a text in UTF-8", f"NUL in line {line}, as UTF-16 and binary files have")
    return text


def _lines(text: str, path: Path) -> Rows:
    """Lines that are not blank. Only "\\n", "\\r\\n" and "\\r" end one: JSON and prompts may hold Unicode's others."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield f"line {number} of {path}", line.strip()


def _from_text(text: str, path: Path, column: str) -> Rows:
    for place, line in _lines(text, path):
        require(not _is_object(line), "read_prompts", place, "a prompt, or the file's ending .jsonl", shortened(line))
        yield place, {column: line}


def _from_jsonl(text: str, path: Path, column: str) -> Rows:
    for place, line in _lines(text, path):
        row = _json(line, place)
        require(isinstance(row, dict), "read_prompts", place, "a JSON object", shortened(line))
        yield place, row


def _from_json(text: str, path: Path, column: str) -> Rows:
    rows = _json(text, str(path))
    expected = "a JSON list of objects or texts (one object per line is .jsonl)"
    require(isinstance(rows, list), "read_prompts", str(path), expected, f"{type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        require(isinstance(row, (dict, str)), "read_prompts", str(path), expected, f"{shortened(row)} as item {number}")
        yield f"item {number} of {path}", {column: row} if isinstance(row, str) else row


def _from_table(text: str, path: Path, column: str, delimiter: str = ",") -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    fields: list[str] = []
    try:
        for cells in reader:
            place = f"line {reader.line_num} of {path}"
            if not any(cell.strip() for cell in cells):
                continue
            if not fields:
                fields = [cell.strip() for cell in cells]
                require(len(set(fields)) == len(fields), "read_prompts", place, "names, each once", ", ".join(fields))
                continue
            require(len(cells) == len(fields), "read_prompts", place, f"{len(fields)} fields", len(cells))
            yield place, dict(zip(fields, cells, strict=True))
    except csv.Error as error:
        fail("read_prompts", f"line {reader.line_num} of {path}", "a row of a table", error)


READERS: dict[str, Callable[[str, Path, str], Rows]] = {
    "": _from_text,
    ".txt": _from_text,
    ".jsonl": _from_jsonl,
    ".ndjson": _from_jsonl,
    ".json": _from_json,
    ".csv": _from_table,
    ".tsv": partial(_from_table, delimiter="\t"),
}


def _json(text: str, place: str) -> Any:
    try:
        return parsed_json(text)
    except (ValueError, RecursionError) as error:
        fail("read_prompts", place, "JSON", f"{shortened(text.strip(), 60)!r}: {error}")


def _is_object(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
