"""An entry is a prompt with its metadata; whatever the source, only an entry that a whole run can use is let in."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..choices import OVERALL
from ..errors import fail, require
from ..source_images import IMAGE, check_file, sources_of, stamp
from ..text import printable, shortened

Entry = dict[str, Any]
PROMPT = "prompt"
TASK = "tag"
"""GenEval's metadata field for the task of a prompt."""
NEGATIVE = "negative_prompt"


def checked_entry(row: Mapping[str, Any], column: str, where: str, directory: Path) -> Entry:
    """The row as an entry: its prompt is the field "prompt", and an empty `tag` or `image` is none.

    Args:
        row: a prompt and its metadata.
        column: the field that is the prompt.
        where: the row's place, for messages.
        directory: that paths of source images are relative to.

    Raises:
        ValueError: naming the place and the field: for a prompt that is no text, a task without a usable name, a
            negative prompt, source images that are no image files, or metadata that JSON cannot hold.
    """
    expected = f"an entry with the field {column!r}, or with another one that --prompt-column names"
    require(column in row, "read_prompts", where, expected, f"one with {shortened(', '.join(map(str, row)))}")
    prompt, task = row[column], row.get(TASK)
    is_text = isinstance(prompt, str) and bool(prompt.strip()) and "\0" not in prompt
    require(is_text, "read_prompts", f"{column} of {where}", "a text, not empty and without NUL", _shown(prompt))
    if task is not None:
        is_name = isinstance(task, str) and bool(task.strip()) and printable(task) == task != OVERALL
        require(is_name, "read_prompts", f"{TASK} of {where}", f"a name of a task other than {OVERALL!r}", _shown(task))
    expected = "absent or empty, since prompts are guided against the model's own negative prompt"
    require(not row.get(NEGATIVE), "read_prompts", f"{NEGATIVE} of {where}", expected, _shown(row.get(NEGATIVE)))
    entry = {name: value for name, value in row.items() if name != TASK or value is not None}
    entry[PROMPT] = prompt
    _require_json(entry, where)
    return _with_paths(entry, where, directory)


def portable(entry: Entry, content: Callable[[Path], object]) -> Entry:
    """An entry that says what its source images are, by name and content, and not where.

    Args:
        entry: a checked one.
        content: what tells an image from others of its name: `num_bytes` where there are too many to read, or a digest.

    Raises:
        ValueError: if a source image is gone.
    """
    paths = [Path(source) for source in sources_of(entry)]
    return {**entry, IMAGE: [[path.name, content(path)] for path in paths]} if paths else entry


def num_bytes(path: Path) -> int:
    """The size of a file.

    Args:
        path: of the file.

    Raises:
        ValueError: if there is none.
    """
    return stamp(path)[0]


def _with_paths(entry: Entry, where: str, directory: Path) -> Entry:
    """The entry with paths of source images as they can be opened: one, or a list of several."""
    argument, given = f"{IMAGE} of {where}", entry.pop(IMAGE, None)
    try:
        paths = [directory / source for source in sources_of({IMAGE: given})]
    except ValueError:
        fail("read_prompts", argument, "a path of an image file or a list of such paths", _shown(given))
    for path in paths:
        check_file("read_prompts", argument, path)
    if paths:
        entry[IMAGE] = [str(path) for path in paths] if isinstance(given, list) else str(paths[0])
    return entry


def same_prompt(prompt: str) -> str:
    """A text that is equal for prompts that differ only in case, white space or the form of their characters.

    Args:
        prompt: any prompt.
    """
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def same_entry(entry: Entry) -> tuple[str, ...]:
    """What is equal for entries of one prompt with the same source images.

    Args:
        entry: a checked one, or a `portable` one.
    """
    images = entry.get(IMAGE) or []
    return same_prompt(entry[PROMPT]), *map(str, images if isinstance(images, list) else [images])


def _require_json(entry: Entry, where: str) -> None:
    """Metadata travel to servers and into reports as JSON in UTF-8, which has no NaN and no half of a character."""
    for name, value in entry.items():
        try:
            json.dumps({name: value}, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            reason = "a lone surrogate" if isinstance(error, UnicodeEncodeError) else str(error)
            fail("read_prompts", f"{printable(name)} of {where}", "what JSON in UTF-8 can hold", reason)


def _shown(value: object) -> str:
    return shortened(repr(value))
