"""Runs that are killed, or whose disk is full, at an exact file event, and what they leave."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from support import TESTS
from support.pipelines import sd3_pipeline
from support.runs import untimed
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.numbered import find_checkpoint

SETTINGS = {
    "iterations": 3,
    "reward": "jpeg_incompressibility",
    "accuracy": "None",
    "checkpoint-every": 1,
    "num-checkpoints": 2,
    "prompts-per-iteration": 2,
    "num-seeds": 1,
    "num-branches": 2,
    "num-steps": 2,
    "sigmas": "1.0 0.5 0.0",
    "branch-steps": "0",
    "eval-images": 1,
    "eval-every": 2,
    "ema-decay": 0.9,
    "beta": 0.01,
    "learning-rate-decay": 0,
}
"""A run of a second with everything that has a state."""
KILL, TORN, FULL = 0, -1, errno.ENOSPC
"""Kinds of faults: kill at the event, kill in the middle of a write, no space from this event on."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    """Its exit status, or minus the signal that ended it."""
    events: int
    """Number of file events; 0 if it was killed."""
    said: str
    """All that it printed."""


class Faults(AbstractContextManager):
    """Starts runs with faults.

    Args:
        scratch: directory for the library and for outputs.
    """

    def __init__(self, scratch: Path) -> None:
        self._output, self._model, library = scratch / "said", scratch / "pipeline", scratch / "faults.so"
        sd3_pipeline(scratch / "tokenizer").save_pretrained(self._model)
        source = TESTS / "support" / "faults.c"
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "support.faults_worker"]
        pipe = subprocess.PIPE
        self._worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def __exit__(self, *failure: Any) -> None:
        assert self._worker.stdin is not None
        self._worker.stdin.close()
        self._worker.wait()

    def run(
        self,
        directory: Path,
        event: int = 0,
        kind: int = KILL,
        seconds: float | None = None,
        file_size: int | None = None,
    ) -> Ended:
        """Runs the command.

        Args:
            directory: of the run.
            event: the number of the file event with the fault, from 1; 0: none.
            kind: KILL, TORN or FULL.
            seconds: time after which it is killed; None: never.
            file_size: limit for every file in bytes; None: no limit.
        """
        options = ["--recipe", "shapes", "--model", str(self._model)]
        options += [part for name, value in SETTINGS.items() for part in (f"--{name}", *str(value).split())]
        request = {
            "arguments": ["train", "--output", str(directory), *options, "--trackers"],
            "directory": str(directory),
            "event": event,
            "kind": kind,
            "seconds": seconds,
            "file_size": file_size,
            "output": str(self._output),
        }
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(json.dumps(request) + "\n")
        self._worker.stdin.flush()
        return Ended(**json.loads(self._worker.stdout.readline()), said=self._output.read_text())


def state(directory: Path) -> dict[str, Any]:
    """All that must not depend on interruptions: metrics, scores, and the bits of the checkpoint and of the model."""
    run = RunDirectory(directory)
    checkpoint = find_checkpoint(run.checkpoints).newest
    assert checkpoint is not None
    files = [*sorted(checkpoint.glob("*.safetensors")), *sorted(run.model.rglob("*.safetensors"))]
    assert len(files) > 4
    tensors = {
        f"{path.relative_to(directory)}/{name}": tensor.numpy().tobytes()
        for path in files
        for name, tensor in load_file(path).items()
    }
    scores = [json.loads((directory / f"eval_{name}.json").read_text()) for name in ("before", "after")]
    return {"metrics": untimed(run), "scores": scores, **tensors}


def differing(directory: Path, wanted: dict[str, Any]) -> list[str]:
    """What differs from the run without a fault, by name, and what was left lying about."""
    found = state(directory)
    names = [name for name in wanted if found.get(name) != wanted[name]] + sorted(found.keys() - wanted.keys())
    return names + [str(path) for path in directory.rglob(".part-*")]
