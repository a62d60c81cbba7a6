"""Where the seconds of an iteration go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..processes import Processes

STAGES = ("encode", "rollout", "decode", "reward", "train")


class StageClock:
    """Wall seconds per stage, as they pass on the host; a stage inside another one is counted separately."""

    def __init__(self) -> None:
        # All of them from the start, so that processes compare the same ones, whichever of them had nothing to decode.
        self.seconds = {f"seconds_{name}": 0.0 for name in STAGES}
        self._inside = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of its block to `seconds_<name>`."""
        start, around, self._inside = time.perf_counter(), self._inside, 0.0
        yield
        passed = time.perf_counter() - start
        self.seconds[f"seconds_{name}"] += passed - self._inside
        self._inside = around + passed

    def slowest(self, processes: Processes) -> dict[str, float]:
        """The seconds of each stage in the process that took longest."""
        if processes.count == 1:
            return self.seconds
        longest = processes.max(torch.tensor(list(self.seconds.values()), dtype=torch.float64))
        return dict(zip(self.seconds, longest.tolist(), strict=True))
