"""The error for an option that cannot be used as given."""

from __future__ import annotations


def require_option(holds: bool, name: str, expected: str, got: object) -> None:
    """Refuses an option unless a condition holds: "--name must be <expected>, got <got>".

    Args:
        holds: the condition.
        name: the field of the command.
        expected: what the option must be.
        got: what was given.

    Raises:
        ValueError: if the condition does not hold.
    """
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} must be {expected}, got {got}")
