"""Options that are given twice."""

from __future__ import annotations

from collections.abc import Sequence

LISTS = ("--prompt", "--against")
"""Options that may be given several times."""
ALIASES = {"--num-iterations": "--iterations"}
"""Another name -> the option."""


def check_repeated(arguments: Sequence[str]) -> None:
    """Refuses an option that is given twice with different values: one of them would be dropped without a word.

    Args:
        arguments: the command line.

    Raises:
        ValueError: naming the option and both values.
    """
    found: dict[str, str] = {}
    for name, value in _options(arguments):
        if found.setdefault(name, value) != value:
            values = " and ".join(repr(each or "no value") for each in (found[name], value))
            raise ValueError(f"{name} must be given once, got {values}")


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(option, its values as one text) for each option that may be given only once."""
    found: list[tuple[str, str]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            name = name.replace("_", "-")
            is_negative = name.startswith("--no-")
            found.append((f"--{name[5:]}" if is_negative else ALIASES.get(name, name), "no" if is_negative else value))
        elif found:
            name, value = found[-1]
            found[-1] = (name, f"{value} {argument}".strip())
    return [(name, value) for name, value in found if name not in LISTS]
