"""What a training run leaves on disk.

    config.json         the settings
    starts.jsonl        one line per start: at which iteration, and which settings had changed
    metrics.jsonl       one line per iteration
    eval_before.json    scores on held-out prompts, and eval_after.json
    reward.png          reward by iteration
    signs.png           the same beside watched rewards, KL and image statistics: see docs/evaluation.md
    samples.png         the same prompts and noise before and after
    model/              the tuned pipeline as diffusers loads it, or lora/ with the adapter for `load_lora_weights`
    evaluations/000050/ scores and fixed-prompt images after 50 iterations
    checkpoints/000050/ what it takes to go on from there (see `checkpoint`)
    logs/               of the trackers

Everything but the growing .jsonl files is written under another name and renamed: a file that is there is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import ASIDE, remove, write_json, written_aside
from ..settings.run import TrainConfig

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation
    from ..policies import DiffusersPolicy


class RunDirectory:
    """Writes and reads the files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.curve, self.signs, self.sheet = (self.path / f"{name}.png" for name in ("reward", "signs", "samples"))
        self.model, self.lora, self.logs = (self.path / name for name in ("model", "lora", "logs"))
        self.checkpoints, self.evaluations = self.path / "checkpoints", self.path / "evaluations"
        self._config, self._metrics = self.path / "config.json", self.path / "metrics.jsonl"

    def exists(self) -> bool:
        """Whether this is the directory of a run."""
        return self._config.is_file()

    def check_free(self) -> None:
        """ValueError if there is something in the directory."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            got = f"{str(self.path)!r}, which holds something: remove it or name another"
            raise ValueError(f"output must be a new or empty directory, or that of a run to go on with, got {got}")

    def write_config(self, config: TrainConfig) -> None:
        """Writes `config.json`."""
        with written_aside(self._config) as aside:
            aside.write_text(config.to_json())

    def read_config(self) -> TrainConfig:
        """The settings of the run; ValueError if this is no run directory."""
        if not self.exists():
            raise ValueError(f"run directory must hold a config.json, got {str(self.path)!r}")
        return TrainConfig.from_json(self._config.read_text())

    def append_start(self, facts: Mapping[str, Any]) -> None:
        """Adds one line to `starts.jsonl`."""
        with (self.path / "starts.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")

    def append_metrics(self, metrics: Mapping[str, float]) -> None:
        """Adds one line to `metrics.jsonl`."""
        with self._metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """Every line of `metrics.jsonl`, none if no iteration was done."""
        return [json.loads(line) for line in self._metrics.read_text().splitlines()] if self._metrics.exists() else []

    def keep_metrics(self, num_iterations: int) -> None:
        """Cuts `metrics.jsonl` after that many iterations: what a run that died had done beyond its checkpoint."""
        if not self._metrics.exists():
            return
        lines = self._metrics.read_text().splitlines(keepends=True)
        with written_aside(self._metrics) as aside:
            aside.write_text("".join(lines[:num_iterations]))

    def synchronize_metrics(self) -> None:
        """Brings the lines so far to the disk."""
        with self._metrics.open("a") as file:
            os.fsync(file.fileno())

    def write_tuned(self, policy: DiffusersPolicy, adapter: bool) -> None:
        """Writes `lora/` for a policy with an adapter, else `model/`."""
        if adapter:
            with written_aside(self.lora) as aside:
                policy.save_lora(aside)
        else:
            with written_aside(self.model) as aside:
                policy.save(aside)

    def evaluation(self, num_iterations: int) -> Evaluation | None:
        """The evaluation after so many iterations, if it was made."""
        from ..evaluation.result import Evaluation

        path = self._evaluation(num_iterations) / "scores.safetensors"
        return Evaluation.load(path) if path.is_file() else None

    def write_evaluation(self, num_iterations: int, evaluation: Evaluation) -> None:
        """Writes a directory with the scores and images after so many iterations."""
        from ..evaluation.sheets import contact_sheet

        with written_aside(self._evaluation(num_iterations)) as aside:
            aside.mkdir()
            evaluation.save(aside / "scores.safetensors")
            write_json(aside / "scores.json", evaluation.table())
            captions = [entry["prompt"] for entry in evaluation.metadata[: len(evaluation.images)]]
            contact_sheet(aside / "samples.png", evaluation.images, captions)

    def _evaluation(self, num_iterations: int) -> Path:
        return self.evaluations / f"{num_iterations:06d}"

    def write_scores(self, name: str, evaluation: Evaluation) -> None:
        """Writes `eval_<name>.json`."""
        write_json(self.path / f"eval_{name}.json", evaluation.table())

    def sweep(self) -> None:
        """Removes what a run that died was writing."""
        for directory in (self.path, self.checkpoints, self.evaluations):
            for left in directory.glob(f"{ASIDE}*"):
                remove(left)
