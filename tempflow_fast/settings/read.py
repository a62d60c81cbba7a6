"""Settings from JSON, type by type: what a field declares is what its value must be.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import fail, unknown
from ..text import shortened

Settings = TypeVar("Settings")
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", type(None): "null"}
"""Type -> what a file may hold for it."""


def read_settings(kind: type[Settings], data: object, source: str, place: str = "") -> Settings:
    """Builds a dataclass, and those within it, from what JSON made of `asdict`.

    A field that is missing has its default; JSON has lists where settings have tuples.

    Args:
        kind: the dataclass.
        data: the object with its fields.
        source: where the data comes from, such as the path of a file, for errors.
        place: the fields that lead to `data` within the source, each with a dot after it.

    Returns:
        The settings.

    Raises:
        ValueError: naming the source and the field, for a field that does not exist or a value of another type; or
            naming the source, for a value that is out of range.
    """
    if not isinstance(data, Mapping):
        fail(source, place.rstrip(".") or "the settings", "an object", _shown(data))
    hints, known = get_type_hints(kind), {item.name for item in fields(_as_dataclass(kind))}
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            unknown(source, f"a setting in {place.rstrip('.') or 'the file'}", shortened(name), known)
        if is_dataclass(hints[name]):
            values[name] = read_settings(_as_dataclass(hints[name]), value, source, f"{place}{name}.")
        else:
            values[name] = typed(hints[name], value, source, f"{place}{name}")
    try:
        return kind(**values)
    except ValueError as error:  # out of range, or it does not fit another field: the error names it
        raise ValueError(f"{source}: {error}") from error


def typed(hint: Any, value: object, source: str, name: str) -> Any:
    """Returns a value as its type hint declares it.

    Args:
        hint: bool, int, float, str, None, a Literal of texts, a tuple, or a union of these.
        value: from JSON, where a tuple is a list, and a number without a fraction may be written either way.
        source: where the value comes from, for errors.
        name: what it is called there.

    Raises:
        ValueError: naming source and name, if the value has another type.
    """
    try:
        return _converted(hint, value)
    except TypeError:
        fail(source, name, _words(hint), _shown(value))


def _converted(hint: Any, value: Any) -> Any:
    """The value as the hint declares it, or a TypeError."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for member in members:
            with suppress(TypeError):
                return _converted(member, value)
    elif origin is Literal:
        if isinstance(value, str) and value in members:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            hints = members[:1] * len(value) if members[-1] is ... else members
            if len(hints) == len(value):
                return tuple(_converted(member, item) for member, item in zip(hints, value, strict=True))
    elif hint is float:
        if type(value) in (int, float) and not math.isnan(value):
            return float(value)
    elif hint is int and type(value) is float and value.is_integer():
        return int(value)
    elif type(value) is hint:
        return value
    raise TypeError


def _words(hint: Any) -> str:
    """What a value of a hint may be, in words."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in members)
    if origin is Literal:
        return " or ".join(f'"{member}"' for member in members)
    if origin is tuple:
        number = "of any length" if members[-1] is ... else f"of {len(members)}"
        return f"a list {number}, each {_words(members[0])}"
    return WORDS[hint]


def _shown(value: object) -> str:
    """A value as it looks in JSON, shortened."""
    text = {True: "true", False: "false", None: "null"}.get(value) if value is None or isinstance(value, bool) else None
    return text or shortened(repr(value))


def _as_dataclass(kind: Any) -> Any:
    """The same class: to a type checker, a type variable or a hint is no dataclass."""
    return kind
