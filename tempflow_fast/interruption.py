"""Where long work may be given up: before a network call outside training, and in the wait for a reward.

A run that has to end soon cannot be interrupted just anywhere, since its weights might be half changed. It asks, and
the work ends at the next of these places. Whoever does not ask, such as a program that uses the package, never notices.
An iteration changes no weight before its last such place.
"""

from __future__ import annotations

import math
import time

POLL = 0.2
"""Seconds between two looks of a wait."""


class GivenUpError(Exception):
    """The work was given up because `ask` was called."""


_due, _calls_too = math.inf, False


def ask(seconds: float, calls_too: bool) -> None:
    """Asks for the work in progress to be given up.

    Args:
        seconds: how long it may still take.
        calls_too: whether a sequence of network calls may be given up, in addition to a wait for a reward. It must not
            where other processes take part in the calls.
    """
    global _due, _calls_too
    _due, _calls_too = time.monotonic() + seconds, calls_too


def withdraw() -> None:
    """Takes back what was asked."""
    global _due, _calls_too
    _due, _calls_too = math.inf, False


def is_due() -> bool:
    """Returns whether a wait should be given up now."""
    return time.monotonic() >= _due


def before_call() -> None:
    """Marks a place before a network call where the work may be given up.

    Raises:
        GivenUpError: if it should be given up now.
    """
    if _calls_too and is_due():
        raise GivenUpError("the work was given up, as asked")
