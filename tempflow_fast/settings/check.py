"""The type of every field of a settings class: a dataclass itself checks none, and "false" would be true.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

import types
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import fail, unknown
from ..text import shortened

WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a text", type(None): "None"}
"""Type -> what a field of it may be."""


def check_types(settings: Any) -> None:
    """Refuses a value that is not of the type of its field.

    Args:
        settings: an instance of a dataclass of settings.

    Raises:
        ValueError: naming the class, the field and the value.
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind):
        value = getattr(settings, name)
        if fits(hint, value):
            continue
        choices = [choice for member in (hint, *get_args(hint)) for choice in _choices(member)]
        if choices and isinstance(value, str):
            unknown(kind.__name__, name, value, choices)
        fail(kind.__name__, name, in_words(hint), shortened(repr(value)))


def fits(hint: Any, value: object) -> bool:
    """Whether a value is of a type; an integer is a number, a list may be given for a tuple, a truth value is neither.

    Args:
        hint: bool, int, float, str, None, a dataclass, a Literal of texts, a tuple, or a union of these.
        value: any.
    """
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(member, value) for member in members)
    if origin is Literal:
        return isinstance(value, str) and value in members
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        hints = members[:1] * len(value) if members[-1] is ... else members
        return len(hints) == len(value) and all(map(fits, hints, value))
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, hint)


def in_words(hint: Any) -> str:
    """What a value of a type may be, in words.

    Args:
        hint: as in `fits`.
    """
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(member) for member in members)
    if origin is Literal:
        return " or ".join(map(repr, members))
    if origin is tuple:
        number = "of any length" if members[-1] is ... else f"of {len(members)}"
        return f"a tuple {number}, each {in_words(members[0])}"
    return WORDS.get(hint) or f"a {hint.__name__}"


def _choices(hint: Any) -> tuple[str, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


@cache
def _hints(kind: Any) -> tuple[tuple[str, Any], ...]:
    """(field, its type) for each field."""
    hints = get_type_hints(kind)
    return tuple((item.name, hints[item.name]) for item in fields(kind))
