"""Checks of single arguments: every error names the function, the argument, what was expected and what came."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import NoReturn

import torch


def fail(function: str, argument: str, expected: str, got: object) -> NoReturn:
    """Raises the one kind of error that a wrong argument gets."""
    raise ValueError(f"{function}: {argument} must be {expected}, got {got}")


def integer(function: str, argument: str, value: object) -> int:
    """`value`, unless it is no whole number by its type: a float would be cut off, a tensor be waited for."""
    if not isinstance(value, Integral):
        fail(function, argument, "an integer", repr(value))
    return value if isinstance(value, int) else int(value)  # int() would fix a size that torch.compile left open


def integers(function: str, argument: str, values: object) -> list[int]:
    """`values` as a list of integers of 64 bits."""
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
    """`value`, unless it is no number or not finite."""
    if not isinstance(value, Real):
        fail(function, argument, "a number", repr(value))
    if not -math.inf < value < math.inf:
        fail(function, argument, "finite", value)
    return value


def usable_device(function: str, device: torch.device | str) -> torch.device:
    """The device of that name, unless this torch on this machine has none such."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch's own answers, by kind of device
        reason = str(error).strip().splitlines()[0]
        got = f"{str(device)!r}: {reason}"
        raise ValueError(f"{function}: device must be one that torch serves here, got {got}") from error
    return found
