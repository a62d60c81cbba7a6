"""A run of the experiment: its settings, the process that makes it, and what is kept of it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from tempflow_fast.evaluation.intervals import OVERALL
from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.settings.run import TrainConfig

from .awm import LEVELS
from .methods import METHODS

WATCHED = ("clip_fraction", "group_std", "image_diversity", "signal_fraction", "grad_norm")
"""Metrics whose mean over the iterations that have them is kept."""

DIVERGED = 4
"""Exit status of a run whose weights became infinite or NaN."""

BACKWARD = 3
"""Evaluations that cost as much as a row forward and backward."""


@dataclass(frozen=True)
class Plan:
    """What a run is: a method, its tuned settings, a seed, and how far it goes."""

    stage: str
    """"tuning", "report" or "time"."""
    method: str
    seed: int
    learning_rate: float
    noise_level: float
    budget: int
    """Network evaluations of the rollouts. A larger one continues the same run."""
    spacing: int | None
    """Evaluations between two looks at the held-out prompts; None: only at the end."""
    eval_images: int
    eval_seed: int
    prompts: int | None = None
    """Prompts per iteration; None: the method's own."""

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Plan:
        """The plan of a finished run.

        Args:
            result: what `result` returned.
        """
        return cls(**{each.name: result[each.name] for each in fields(cls)})

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.stage}-{self.method}-{self.seed}-{self.learning_rate:g}-{self.noise_level:g}"

    @property
    def digest(self) -> str:
        """Of all that its result depends on, but its length. Settings of their default value do not count, so that one
        that is added to the package does not make old results new."""
        usual = TrainConfig().flat()
        changed = {name: value for name, value in self.config().flat().items() if value != usual[name]}
        kept = {name: value for name, value in changed.items() if name not in ("num_iterations", "eval_every")}
        return hashlib.sha256(json.dumps([self.name, kept], sort_keys=True).encode()).hexdigest()[:12]

    def config(self) -> TrainConfig:
        """The settings of the run."""
        config = METHODS[self.method].config()
        if self.prompts is not None:
            config = config.with_settings(prompts_per_iteration=self.prompts)
        each = evaluations_of(config)
        return config.with_settings(
            seed=self.seed,
            learning_rate=self.learning_rate,
            noise_level=self.noise_level,
            num_iterations=max(1, round(self.budget / each)),
            eval_images=self.eval_images,
            eval_seed=self.eval_seed,
            eval_every=None if self.spacing is None else max(1, round(self.spacing / each)),
        )

    @property
    def _trained(self) -> float:
        """Rows that an iteration of the run trains."""
        usual = METHODS[self.method].prompts
        return trained_by(self.method) * (self.prompts or usual) / usual

    def start(self, directory: Path) -> subprocess.Popen[bytes]:
        """Starts or resumes the run in a process of its own, with one thread.

        Args:
            directory: of all runs; the run's log is next to its directory.
        """
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "bench.experiment.one", json.dumps(asdict(self)), str(directory / self.name)]
        with (directory / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def result(self, directory: Path, diverged: bool = False) -> dict[str, Any]:
        """What is kept of the finished run: one line of results.jsonl.

        Args:
            directory: of all runs.
            diverged: the run ended because its weights can draw nothing any more: its last accuracies are 0.
        """
        run = RunDirectory(directory / self.name)
        metrics = run.read_metrics()
        spent = _totals(metrics, "num_row_evaluations")
        processor = _totals(metrics, "processor_seconds")
        scored = sorted(int(path.name) for path in (run.path / "evaluations").iterdir())
        scores = [json.loads((run.path / "evaluations" / f"{at:06d}" / "scores.json").read_text()) for at in scored]
        if diverged:
            scored.append(len(metrics))
            scores.append({task: dict.fromkeys(values, 0.0) for task, values in scores[0].items()})
        steps = sorted({name for row in metrics for name in row if name.startswith("group_std_step_")})
        return {
            **asdict(self),
            "digest": self.digest,
            "iterations": scored,
            "evaluations": [spent[at] for at in scored],
            "work": [spent[at] + BACKWARD * at * self._trained for at in scored],
            "seconds": [0.0 if at == 0 else metrics[at - 1]["seconds"] for at in scored],
            "processor": [processor[at] for at in scored],
            "accuracy": [each[OVERALL]["accuracy"] for each in scores],
            "reward": [each[OVERALL]["reward"] for each in scores],
            "tasks": {task: [each[task]["accuracy"] for each in scores] for task in scores[0] if task != OVERALL},
            "metrics": {
                name: _mean(metrics, name) for name in (*WATCHED, *steps) if any(name in row for row in metrics)
            },
        }


def evaluations_of(config: TrainConfig) -> int:
    """Network evaluations of one iteration's rollout."""
    return Geometry(config.grpo, config.task.prompts_per_iteration).costs()[0].rollout


def trained_by(name: str) -> int:
    """Rows that an iteration of a method runs forward and backward, before tuning.

    Args:
        name: key of `METHODS`.
    """
    competitor = METHODS[name]
    config = competitor.config()
    if competitor.step == "awm":
        return competitor.prompts * config.grpo.num_seeds * LEVELS
    return Geometry(config.grpo, config.task.prompts_per_iteration).costs()[0].trained


def _totals(metrics: list[dict[str, float]], name: str) -> list[float]:
    """Of a metric, before the first iteration and after each; nan for a run that began before there was the metric."""
    return [0.0, *accumulate(row.get(name, math.nan) for row in metrics)]


def _mean(metrics: list[dict[str, float]], name: str) -> float:
    """Of the iterations that have it: a step that no trajectory was drawn to branch at has no spread."""
    values = [row[name] for row in metrics if name in row]
    return math.fsum(values) / len(values)
