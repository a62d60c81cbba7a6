"""Where a run starts: from the beginning, or from the newest undamaged checkpoint in its directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checksums import Digests
from ..errors import fail
from ..processes import Processes
from ..settings.fields import FIXED, FIXED_PRESENCE
from ..settings.run import TrainConfig, differences
from .directory import RunDirectory
from .numbered import Found, all_numbered, checkpoint_config, find_checkpoint, numbered, read_facts
from .origin import Origin

FIXED_CONTENTS = ("model", "prompts")
"""Settings whose content a run cannot change, like their values. A reward's code may be mended between two starts."""


@dataclass(frozen=True)
class Start:
    """How a run begins. Only the main process knows more than the checkpoint."""

    checkpoint: Path | None
    """The checkpoint to load; None: the run starts from the beginning."""
    changed: dict[str, tuple[Any, Any]]
    """Setting -> (value of the checkpoint, value now), for settings that have changed."""
    origin: Origin = field(default_factory=Origin)
    """Where the numbers come from now."""
    remarks: tuple[str, ...] = ()
    """What is out of the ordinary, in sentences without a full stop."""

    @property
    def num_iterations(self) -> int:
        """Number of iterations that are done."""
        return 0 if self.checkpoint is None else int(self.checkpoint.name)

    def sentence(self) -> str:
        """Returns what to tell the user; empty for a new run."""
        parts = [] if self.checkpoint is None else [f"resuming from {self.checkpoint}"]
        parts += [f"with changed settings: {changes(self.changed)}"] if self.changed else []
        return "; ".join([", ".join(parts), *self.remarks] if parts else self.remarks)


def begin(run: RunDirectory, config: TrainConfig, processes: Processes, fall_back: bool = True) -> Start:
    """Prepares the run directory, and finds out where the run starts.

    All processes must call it together; the main process decides and writes.

    Args:
        run: the run directory.
        config: the settings.
        processes: those that share the run.
        fall_back: whether to start from an earlier checkpoint if the latest one is damaged, instead of refusing.

    Returns:
        Where the run starts.

    Raises:
        ValueError: for a directory that holds something other than a run, or that not all processes see, a change of
            settings that a run cannot make, or damage that it cannot start from.
    """
    digests = Digests(run.digests)
    start = _decided(run, config, processes, digests, fall_back) if processes.is_main else Start(None, {})
    number = int(processes.max(torch.tensor(-1 if start.checkpoint is None else start.num_iterations)))
    checkpoint = None if number < 0 else numbered(run.checkpoints, number)
    is_missing = checkpoint is not None and not checkpoint.is_dir()
    if processes.max(torch.tensor(int(is_missing))):
        fail(
            "begin",
            "run",
            "a directory that all machines share",
            f"{run.path} without checkpoint {number:06} on one of them",
        )
    if not processes.is_main:
        return Start(checkpoint, {})
    run.path.mkdir(parents=True, exist_ok=True)
    run.sweep()
    remark = run.keep_metrics(start.num_iterations)
    run.write_config(config)
    digests.save()
    facts = {"iteration": start.num_iterations, "changed": start.changed, "surroundings": start.origin.surroundings}
    run.append_start(facts)
    return Start(start.checkpoint, start.changed, start.origin, (*start.remarks, *filter(None, [remark])))


def check_settings(run: RunDirectory, config: TrainConfig) -> None:
    """Refuses changes that the run cannot make, by the settings in its newest checkpoint; reads no more than these.

    Args:
        run: the run directory.
        config: the settings.

    Raises:
        ValueError: naming the settings.
    """
    checkpoints = all_numbered(run.checkpoints)
    if not checkpoints:
        return
    try:
        before = checkpoint_config(checkpoints[max(checkpoints)])
    except (OSError, ValueError):  # damaged: `begin` says so, and finds another one
        return
    _check_changes(run, differences(before, config))


def changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Writes changed settings as "name: old -> new, ...".

    Args:
        changed: setting -> (old value, new value).
    """
    return ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in changed.items())


def _decided(run: RunDirectory, config: TrainConfig, processes: Processes, digests: Digests, fall_back: bool) -> Start:
    """Where the run starts, after all that could be refused; nothing is written yet."""
    if not run.exists():
        run.check_free()
    run.check_kinds()
    found = find_checkpoint(run.checkpoints)
    _check_damage(run, found, fall_back)
    origin = Origin.of(config, processes, digests)
    if found.newest is None:
        return Start(None, {}, origin)
    changed = differences(checkpoint_config(found.newest), config)
    _check_changes(run, changed)
    before = Origin.from_json(read_facts(found.newest).get("origin"))
    remarks = [f"{path} is damaged: {reason}" for path, reason in found.damaged.items()]
    remarks += _moved(run, before, origin)
    return Start(found.newest, changed, origin, tuple(remarks))


def _check_damage(run: RunDirectory, found: Found, fall_back: bool) -> None:
    """Refuses a run without an undamaged checkpoint that has had one, and damage that the user wants to see."""
    damaged = ", ".join(f"{path}: {reason}" for path, reason in found.damaged.items())
    if found.newest is None and found.damaged:
        got = f"{damaged}; to start from the beginning, name another --output"
        fail("begin", "checkpoints", "at least one that is undamaged", got)
    if found.newest is None:
        run.check_lost()
    elif found.damaged and not fall_back:
        fail("begin", "checkpoints", "undamaged with --resume latest", f"{damaged}; the latest other is {found.newest}")


def _check_changes(run: RunDirectory, changed: dict[str, tuple[Any, Any]]) -> None:
    """Refuses changes with which checkpoints would not load, or before and after could not be compared."""
    presence = set(TrainConfig.marked(FIXED_PRESENCE))
    fixed = {*TrainConfig.marked(FIXED), *(name for name in presence & changed.keys() if None in changed[name])}
    if refused := {name: pair for name, pair in changed.items() if name in fixed}:
        advice = "choose another --output, or keep these settings"
        fail("begin", "settings", f"those of the run in {str(run.path)!r}", f"{changes(refused)}: {advice}")


def _moved(run: RunDirectory, before: Origin, now: Origin) -> list[str]:
    """Refuses another content of what the settings name, and says what else is not as it was."""
    other = [name for name, digest in now.contents.items() if before.contents.get(name, digest) != digest]
    for name in FIXED_CONTENTS:
        if name in other:
            got = "files with another content: restore them, or choose another --output"
            fail("begin", name, f"what the run in {str(run.path)!r} started with", got)
    remarks = [f"the source of {name} has changed" for name in other]
    surroundings = {
        name: (before.surroundings[name], value)
        for name, value in now.surroundings.items()
        if before.surroundings.get(name, value) != value
    }
    if surroundings:
        remarks.append(f"numbers may differ in their last digits from here on: {changes(surroundings)}")
    return remarks
