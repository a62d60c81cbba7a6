"""The errors for options that cannot be used as given."""

from __future__ import annotations

from pathlib import Path


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


def require_suffix(name: str, path: Path, suffix: str) -> None:
    """Refuses a file whose name says that it holds something else: what is written does not follow the name.

    Args:
        name: the field of the command.
        path: the file to write.
        suffix: what its name must end in, in small or capital letters.

    Raises:
        ValueError: for another name.
    """
    require_option(path.suffix.lower() == suffix, name, f"a file that ends in {suffix}", repr(str(path)))
