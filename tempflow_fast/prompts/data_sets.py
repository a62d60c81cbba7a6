"""Data sets of Hugging Face's library -> rows."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import fail, require, unknown
from ..hub import without_retries
from ..text import shortened

HUGGING_FACE = "hf:"
"""Prefix of the sources that are data sets."""


def rows_of_data_set(source: str, column: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a data set, each with its place.

    Texts, numbers and times, also within lists and structures, become what JSON can hold: a time is written as ISO 8601
    does it, and a field without a value, or with NaN, is left out. Columns of anything else, such as images, are not
    read: to decode them would take hours and be of no use to a reward.

    Args:
        source: hf:PATH or hf:PATH:SPLIT, by hub name or directory.
        column: the field that is the prompt.

    Raises:
        ValueError: if there is no such data set, split or column.
    """
    name = source.removeprefix(HUGGING_FACE)
    rows = _loaded(name)
    if column not in rows.column_names:
        unknown("read_prompts", "column", column, rows.column_names)
    plain = [field for field, feature in rows.features.items() if field == column or _is_plain(feature)]
    for number, row in enumerate(rows.select_columns(plain)):
        yield f"row {number} of {name}", _as_json(row)


def _loaded(name: str) -> Any:
    path, _, split = name.partition(":")
    require(bool(path), "read_prompts", "source", "hf:NAME or hf:NAME:SPLIT", repr(HUGGING_FACE + name))
    try:
        import datasets
    except ImportError:
        fail("read_prompts", "source", "a file without the library datasets (pip install datasets)", f"hf:{name}")
    is_single = (Path(path) / "state.json").is_file()  # as `save_to_disk` writes one set
    expected = "without a split, since this data set has none"
    require(not (is_single and split), "read_prompts", "source", expected, f"hf:{name}")
    with without_retries(path) as unreachable:
        try:
            return datasets.load_from_disk(path) if is_single else datasets.load_dataset(path, split=split or "train")
        except Exception as error:  # of its readers of files, of the hub's client, its own
            reason = shortened(str(error).strip().partition("\n")[0] or type(error).__name__, 300)
            place = "" if unreachable is None else f"the Hugging Face hub cannot be reached ({unreachable}): "
            fail("read_prompts", "source", "a data set that loads", f"{name!r}: {place}{reason}")


def _is_plain(feature: Any) -> bool:
    """Whether a column holds only texts, numbers and times, at any depth."""
    from datasets import ClassLabel, Value

    if isinstance(feature, dict):
        return all(_is_plain(part) for part in feature.values())
    if isinstance(feature, (list, tuple)):
        return all(_is_plain(part) for part in feature)
    if isinstance(feature, Value):
        return "binary" not in feature.dtype
    return isinstance(feature, ClassLabel) or (hasattr(feature, "feature") and _is_plain(feature.feature))


def _as_json(value: Any) -> Any:
    """The value in JSON's types; a table fills the fields that a row lacks with None, and some programs with NaN."""
    if isinstance(value, dict):
        return {name: _as_json(part) for name, part in value.items() if part is not None and part == part}
    if isinstance(value, (list, tuple)):
        return [_as_json(part) for part in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
