"""Where a run starts: from the beginning, or from the last checkpoint in its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import fail
from ..files import remove
from ..processes import Processes
from ..settings.fields import FIXED, FIXED_PRESENCE
from ..settings.run import TrainConfig, differences
from .checkpoint import latest_checkpoint
from .directory import RunDirectory


@dataclass(frozen=True)
class Start:
    """How a run begins."""

    checkpoint: Path | None
    """The checkpoint to load; None: the run starts from the beginning."""
    changed: dict[str, tuple[Any, Any]]
    """Setting -> (value in the directory, value now), for settings that have changed."""

    def sentence(self) -> str:
        """Returns what to tell the user; empty for a new run."""
        if self.checkpoint is None:
            return ""
        text = f"resuming from {self.checkpoint}"
        return f"{text}, with changed settings: {changes(self.changed)}" if self.changed else text


def begin(run: RunDirectory, config: TrainConfig, processes: Processes) -> Start:
    """Prepares the run directory, and finds out where the run starts.

    All processes must call it together; the main process decides and writes.

    Args:
        run: the run directory.
        config: the settings.
        processes: those that share the run.

    Returns:
        Where the run starts; only the main process has the changed settings.

    Raises:
        ValueError: for a directory that holds something other than a run, or a change of settings that a run cannot
            make.
    """
    number, changed = -1, {}
    if processes.is_main and run.exists():
        changed = differences(run.read_config(), config)
        checkpoint = latest_checkpoint(run.checkpoints)
        if checkpoint is not None:
            _check(run, changed)
            number = int(checkpoint.name)
        run.sweep()
    elif processes.is_main:
        run.check_free()
    number = int(processes.max(torch.tensor(number)))
    if processes.is_main:
        run.path.mkdir(parents=True, exist_ok=True)
        if number < 0 and changed:
            remove(run.evaluations)  # they belong to other settings
        run.keep_metrics(max(number, 0))
        run.write_config(config)
        run.append_start({"iteration": max(number, 0), "changed": changed})
    return Start(None if number < 0 else run.checkpoints / f"{number:06d}", changed)


def changes(changed: dict[str, tuple[Any, Any]]) -> str:
    """Writes changed settings as "name: old -> new, ...".

    Args:
        changed: setting -> (old value, new value).
    """
    return ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in changed.items())


def _check(run: RunDirectory, changed: dict[str, tuple[Any, Any]]) -> None:
    """Refuses changes with which checkpoints would not load, or before and after could not be compared."""
    presence = set(TrainConfig.marked(FIXED_PRESENCE))
    fixed = {*TrainConfig.marked(FIXED), *(name for name in presence & changed.keys() if None in changed[name])}
    if refused := {name: pair for name, pair in changed.items() if name in fixed}:
        advice = "choose another --output, or keep these settings"
        fail("begin", "settings", f"those of the run in {str(run.path)!r}", f"{changes(refused)}: {advice}")
