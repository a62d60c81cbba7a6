"""What a training run leaves on disk.

    config.json         the settings
    metrics.jsonl       one line per iteration
    eval_before.json    scores on held-out prompts, and eval_after.json
    reward.png          reward by iteration
    samples.png         the same prompts and noise before and after
    model/              the tuned pipeline, as `StableDiffusion3Pipeline.from_pretrained` loads it

Everything but the growing metrics is written under another name and renamed, so that a file that is there is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .evaluate import Evaluation
from .files import write_json, written_aside
from .policies.base import Policy
from .train_config import TrainConfig


class RunDirectory:
    """Writes and reads the files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.curve, self.sheet, self.model = (self.path / name for name in ("reward.png", "samples.png", "model"))
        self._config, self._metrics = self.path / "config.json", self.path / "metrics.jsonl"

    def claim(self) -> None:
        """Make the directory; ValueError if there is something in it."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            got = f"{str(self.path)!r}, which holds something: remove it or name another"
            raise ValueError(f"output must be a new or empty directory, got {got}")
        self.path.mkdir(parents=True, exist_ok=True)

    def write_config(self, config: TrainConfig) -> None:
        """Writes `config.json`."""
        with written_aside(self._config) as aside:
            aside.write_text(config.to_json())

    def read_config(self) -> TrainConfig:
        """The settings of the run; ValueError if this is no run directory."""
        if not self._config.is_file():
            raise ValueError(f"run directory must hold a config.json, got {str(self.path)!r}")
        return TrainConfig.from_json(self._config.read_text())

    def append_metrics(self, metrics: Mapping[str, float]) -> None:
        """Adds one line to `metrics.jsonl`."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """Every line of `metrics.jsonl`, none if no iteration was done."""
        return [json.loads(line) for line in self._metrics.read_text().splitlines()] if self._metrics.exists() else []

    def write_evaluation(self, name: str, evaluation: Evaluation) -> None:
        """Writes `eval_<name>.json`."""
        write_json(self.path / f"eval_{name}.json", evaluation.table())

    def write_model(self, policy: Policy) -> None:
        """Writes `model/`."""
        with written_aside(self.model) as aside:
            policy.save(aside)
