"""Training runs for the page, read from the directories of `tempflow-fast train`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tempflow_fast.run.directory import RunDirectory


@dataclass(frozen=True)
class Run:
    """One run: reward over time, and strict accuracy before and after."""

    seed: int
    seconds: list[float]
    rewards: list[float]
    before: float
    after: float

    @classmethod
    def read(cls, directory: Path) -> Run:
        """Read a run directory; ValueError if the run is not finished."""
        run = RunDirectory(directory)
        metrics, seed = run.read_metrics(), run.read_config().task.seed
        scores = [directory / f"eval_{name}.json" for name in ("before", "after")]
        if not metrics or not all(path.is_file() for path in scores):
            raise ValueError(f"read: directory must hold a finished run, got {str(directory)!r}")
        before, after = (json.loads(path.read_text())["overall"]["accuracy"] for path in scores)
        return cls(seed, [m["seconds"] for m in metrics], [m["reward_mean"] for m in metrics], before, after)

    def line(self, label: str) -> dict[str, str]:
        """One row of the table."""
        return {
            "rollout": label,
            "seed": str(self.seed),
            "iterations": str(len(self.seconds)),
            "seconds": f"{self.seconds[-1]:.0f}",
            "strict accuracy": f"{self.before:.3f} -> {self.after:.3f}",
            "gain": f"{self.after - self.before:+.3f}",
            "reward of the last 10 iterations": f"{sum(self.rewards[-10:]) / len(self.rewards[-10:]):.3f}",
        }


def read_runs(named: Sequence[str]) -> dict[str, list[Run]]:
    """The runs of each label, from arguments of the form LABEL=DIRECTORY."""
    runs: dict[str, list[Run]] = {}
    for each in named:
        label, separator, directory = each.partition("=")
        if not separator:
            raise ValueError(f"read_runs: each of named must be LABEL=DIRECTORY, got {each!r}")
        runs.setdefault(label, []).append(Run.read(Path(directory)))
    return runs
