"""Where a run starts: at the beginning, or at the last checkpoint of its directory."""

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
    """None: at the beginning."""
    changed: dict[str, tuple[Any, Any]]
    """Setting -> (what the directory's run had, what it has now)."""

    def sentence(self) -> str:
        """What to tell the user, empty for a new run as it stands."""
        if self.checkpoint is None:
            return ""
        text = f"going on from {self.checkpoint}"
        return f"{text}, with other settings than before: {changes(self.changed)}" if self.changed else text


def begin(run: RunDirectory, config: TrainConfig, processes: Processes) -> Start:
    """Makes the run directory fit to go on, and says where.

    All processes must call it together; the main one decides and writes.

    Raises:
        ValueError: for a directory that holds something else than a run, or settings that a run cannot change.
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
            remove(run.evaluations)  # they were of other settings
        run.keep_metrics(max(number, 0))
        run.write_config(config)
        run.append_start({"iteration": max(number, 0), "changed": changed})
    return Start(None if number < 0 else run.checkpoints / f"{number:06d}", changed)


def changes(changed: dict[str, tuple[Any, Any]]) -> str:
    """The settings that differ as text, "name: old -> new"."""
    return ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in changed.items())


def _check(run: RunDirectory, changed: dict[str, tuple[Any, Any]]) -> None:
    """Refuses changes that the run's checkpoints or the comparison of before and after would not survive."""
    presence = set(TrainConfig.marked(FIXED_PRESENCE))
    fixed = {*TrainConfig.marked(FIXED), *(name for name in presence & changed.keys() if None in changed[name])}
    if refused := {name: pair for name, pair in changed.items() if name in fixed}:
        advice = "name another --output, or leave them as they are"
        fail("begin", "settings", f"those of the run in {str(run.path)!r}", f"{changes(refused)}: {advice}")
