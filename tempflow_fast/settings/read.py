"""Settings from JSON: every field known, every value of its type (see `check`), every error with the file's name.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from ..errors import fail, unknown
from ..text import shortened

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], data: object, source: str, place: str = "") -> Settings:
    """Builds a dataclass, and those within it, from what JSON made of `asdict`.

    A field that is missing has its default; JSON has lists where settings have tuples.

    Args:
        kind: the dataclass, which checks its values.
        data: the object with its fields.
        source: where the data comes from, such as the path of a file, for errors.
        place: the fields that lead to `data` within the source, each with a dot after it.

    Returns:
        The settings.

    Raises:
        ValueError: naming the source, for a field that does not exist, or a value of another type or out of range.
    """
    if not isinstance(data, Mapping):
        fail(source, place.rstrip(".") or "the settings", "an object", shortened(repr(data)))
    hints, known = get_type_hints(kind), {item.name for item in fields(_as_dataclass(kind))}
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            unknown(source, f"a setting in {place.rstrip('.') or 'the file'}", shortened(name), known)
        if is_dataclass(hints[name]):
            values[name] = read_settings(_as_dataclass(hints[name]), value, source, f"{place}{name}.")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _as_dataclass(kind: Any) -> Any:
    """The same class: to a type checker, a type variable or a hint is no dataclass."""
    return kind
