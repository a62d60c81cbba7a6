"""The one way to refuse an argument: every error names the function, the argument, what was expected and what came.

Nothing here imports torch, so that the command line can answer at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, NoReturn

MOST_LISTED = 30
"""Of more names than this, an error lists the first few: what came would be far from its beginning, and be cut off."""


class NotFiniteError(RuntimeError):
    """Weights, latents, images or a gradient are infinite or NaN, and nothing can be learned from them."""


def fail(function: str, argument: str, expected: str, got: object) -> NoReturn:
    """Raises the one kind of error that a wrong argument gets."""
    raise ValueError(f"{function}: {argument} must be {expected}, got {got}")


def require(holds: bool, function: str, argument: str, expected: str, got: object) -> None:
    """Refuses the argument unless the condition holds."""
    if not holds:
        fail(function, argument, expected, got)


def unknown(
    function: str, argument: str, name: str, known: Iterable[str], more: str = "", like: str | None = None
) -> NoReturn:
    """Refuses a name that is none of `known`, and suggests the nearest ones.

    Args:
        function: the function or class that was called.
        argument: its argument.
        name: the name that was given.
        known: the names there are.
        more: what else would have been right, such as " or a path".
        like: what to compare with the known names, such as a synonym; None: the name.
    """
    known = sorted(known)
    listed = known if len(known) <= MOST_LISTED else [*known[:5], f"{len(known) - 5} more"]
    near = get_close_matches(name if like is None else like, known, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    fail(function, argument, f"one of {', '.join(listed)}{more}", f"{name!r}{hint}")


def integer(function: str, argument: str, value: object) -> int:
    """`value` if it is an integer; a float would be truncated, a tensor on a GPU waited for."""
    if not isinstance(value, Integral):
        fail(function, argument, "an integer", repr(value))
    return value if isinstance(value, int) else int(value)  # int() would fix a size that torch.compile left open


def integers(function: str, argument: str, values: Any) -> list[int]:
    """`values` as a list of 64-bit integers."""
    try:
        listed = list(values)
    except TypeError:
        fail(function, argument, "a list of integers", repr(values))
    whole = [integer(function, argument, value) for value in listed]
    for value in whole:
        if not -(2**63) <= value < 2**63:
            fail(function, argument, "integers of 64 bits", value)
    return whole


def finite(function: str, argument: str, value: object) -> float:
    """`value` if it is a finite number."""
    if not isinstance(value, Real):
        fail(function, argument, "a number", repr(value))
    number: Any = value  # to a type checker, a Real is no float
    try:
        is_finite = math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        is_finite = False
    if not is_finite:
        fail(function, argument, "finite", value)
    return number


def instance(function: str, argument: str, value: object, kind: type, expected: str) -> None:
    """Refuses a value that is not of a type.

    Args:
        function: the function or class that was called.
        argument: its argument.
        value: what was given.
        kind: the type.
        expected: the type in words, such as "a GRPOConfig".
    """
    if not isinstance(value, kind):
        plain = value is None or isinstance(value, (bool, int, float, str))
        fail(function, argument, expected, repr(value)[:80] if plain else f"a {type(value).__name__}")
