"""Directories named by a number of iterations, checkpoints and evaluations: which there are, and which are whole.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checksums import damage
from ..errors import fail
from ..files import read_json
from ..settings.read import read_settings
from ..settings.run import TrainConfig

DIGITS = 6
"""Digits of a name; larger numbers have more."""


@dataclass(frozen=True)
class Found:
    """The checkpoints in a directory."""

    newest: Path | None
    """The one with the most iterations that is as it was written; None: there is none."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Later ones, from the last on -> the first thing that is wrong with each."""


def numbered(directory: Path, num_iterations: int) -> Path:
    """Returns the path of a checkpoint or an evaluation.

    Args:
        directory: holds those of a run.
        num_iterations: number of iterations before it.
    """
    return directory / f"{num_iterations:0{DIGITS}d}"


def all_numbered(directory: Path) -> dict[int, Path]:
    """Returns the checkpoints or evaluations in a directory, damaged or not.

    Args:
        directory: holds those of a run; files of the user with other names, also 4 or 000004-mine, may be among them.

    Returns:
        Number of iterations -> path, in ascending order.
    """
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    numbers = sorted(int(name) for name in names if name.isascii() and name.isdecimal())
    return {number: path for number in numbers if (path := numbered(directory, number)).name in names}


def find_checkpoint(directory: Path) -> Found:
    """Finds the newest checkpoint that is as it was written; this reads it and all damaged later ones as a whole.

    Args:
        directory: holds the checkpoints of a run.
    """
    damaged: dict[Path, str] = {}
    for number, path in reversed(all_numbered(directory).items()):
        reason = damage(path) or _misplaced(path, number)
        if reason is None:
            return Found(path, damaged)
        damaged[path] = reason
    return Found(None, damaged)


def latest_checkpoint(directory: Path) -> Path | None:
    """Returns the undamaged checkpoint with the most iterations, or None.

    Args:
        directory: holds the checkpoints of a run.
    """
    return find_checkpoint(directory).newest


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """Reads the facts of a checkpoint that are no tensors.

    Args:
        checkpoint: its directory.

    Raises:
        ValueError: naming the file, if it does not hold the facts of a checkpoint.
    """
    file = checkpoint / "state.json"
    facts = read_json(file)
    if not isinstance(facts, dict) or "config" not in facts or type(facts.get("num_iterations")) is not int:
        fail("read_facts", str(file), "the facts of a checkpoint", "something else")
    return facts


def checkpoint_config(checkpoint: Path) -> TrainConfig:
    """Reads the settings with which a checkpoint was made.

    Args:
        checkpoint: its directory.

    Raises:
        ValueError: naming the file, if it does not hold them.
    """
    return read_settings(TrainConfig, read_facts(checkpoint)["config"], str(checkpoint / "state.json"), "config.")


def _misplaced(path: Path, number: int) -> str | None:
    """What is wrong with a checkpoint that was renamed, or that is whole but none of this package's."""
    try:
        own = read_facts(path)["num_iterations"]
    except ValueError as error:
        return str(error)
    return None if own == number else f"state.json is of iteration {own}"
