"""The files of a training run.

    config.json         the settings
    starts.jsonl        one line per start: its iteration and the settings that had changed
    metrics.jsonl       one line per iteration
    eval_before.json    scores on held-out prompts, and eval_after.json
    reward.png          reward by iteration
    scores.png          scores on held-out prompts by iteration and task
    signs.png           the same next to held-out rewards, KL and image statistics: see docs/evaluation.md
    samples.png         the same prompts and noise before and after
    model/              the tuned pipeline for diffusers, or lora/ with the adapter for `load_lora_weights`
    evaluations/000050/ scores and fixed-prompt images after 50 iterations
    checkpoints/000050/ state for resuming from there (see `checkpoint`)
    logs/               files of the trackers

Everything except the growing .jsonl files is written under another name and renamed: an existing file is complete.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import fail
from ..files import ASIDE, is_taken, read_json, remove, write_json, written_aside
from ..settings.read import read_settings
from ..settings.run import TrainConfig

if TYPE_CHECKING:
    from ..evaluation.result import Evaluation
    from ..policies import DiffusersPolicy


class RunDirectory:
    """Writes and reads the files of one run.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.curve, self.signs, self.sheet = (self.path / f"{name}.png" for name in ("reward", "signs", "samples"))
        self.scores = self.path / "scores.png"
        self.model, self.lora, self.logs = (self.path / name for name in ("model", "lora", "logs"))
        self.checkpoints, self.evaluations = self.path / "checkpoints", self.path / "evaluations"
        self._config, self._metrics = self.path / "config.json", self.path / "metrics.jsonl"

    def exists(self) -> bool:
        """Returns whether this is the directory of a run."""
        return self._config.is_file()

    def check_free(self) -> None:
        """Checks that a new run may start here.

        Raises:
            ValueError: if the path is a file or a directory that is not empty.
        """
        if is_taken(self.path):
            got = f"{str(self.path)!r}, which is not empty: remove it or name another"
            fail("RunDirectory", "path", "a new or empty directory, or that of a run to resume", got)

    def write_config(self, config: TrainConfig) -> None:
        """Writes `config.json`.

        Args:
            config: the settings.
        """
        with written_aside(self._config) as aside:
            aside.write_text(config.to_json())

    def read_config(self) -> TrainConfig:
        """Reads the settings of the run.

        Raises:
            ValueError: if this is not the directory of a run, or naming its file and what is wrong in it.
        """
        if not self.exists():
            fail("RunDirectory", "path", "the directory of a run, with a config.json", repr(str(self.path)))
        return read_settings(TrainConfig, read_json(self._config), str(self._config))

    def append_start(self, facts: Mapping[str, Any]) -> None:
        """Appends a line to `starts.jsonl`.

        Args:
            facts: of this start, by name.
        """
        with (self.path / "starts.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")

    def append_metrics(self, metrics: Mapping[str, float]) -> None:
        """Appends a line to `metrics.jsonl`.

        Args:
            metrics: of one iteration; numbers that are not finite are written as null, since JSON has no word for them.
        """
        valid = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._metrics.open("a") as file:
            file.write(json.dumps(valid, allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """Returns every line of `metrics.jsonl`, with NaN for null; none before the first iteration."""
        lines = self._metrics.read_text().splitlines() if self._metrics.exists() else []
        rows = [json.loads(line) for line in lines]
        return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]

    def keep_metrics(self, num_iterations: int) -> None:
        """Removes the metrics that a run which was interrupted had written after its last checkpoint.

        Args:
            num_iterations: number of lines of `metrics.jsonl` to keep.
        """
        if not self._metrics.exists():
            return
        lines = self._metrics.read_text().splitlines(keepends=True)
        with written_aside(self._metrics) as aside:
            aside.write_text("".join(lines[:num_iterations]))

    def synchronize_metrics(self) -> None:
        """Flushes `metrics.jsonl` to the disk."""
        with self._metrics.open("a") as file:
            os.fsync(file.fileno())

    def write_tuned(self, policy: DiffusersPolicy, adapter: bool) -> None:
        """Writes the tuned weights.

        Args:
            policy: the model.
            adapter: whether to write only its adapter, to `lora/`, instead of the model, to `model/`.
        """
        if adapter:
            with written_aside(self.lora) as aside:
                policy.save_lora(aside)
        else:
            with written_aside(self.model) as aside:
                policy.save(aside)

    def evaluation(self, num_iterations: int) -> Evaluation | None:
        """Reads an evaluation.

        Args:
            num_iterations: number of iterations before it.

        Returns:
            The evaluation; None if there is none.
        """
        from ..evaluation.result import Evaluation

        path = self._evaluation(num_iterations) / "scores.safetensors"
        return Evaluation.load(path) if path.is_file() else None

    def evaluations_up_to(self, num_iterations: int) -> dict[int, Evaluation]:
        """Reads the evaluations of a run; later ones belong to weights that it has gone back from.

        Args:
            num_iterations: number of iterations before the last one.

        Returns:
            Number of iterations before it -> evaluation, in ascending order.
        """
        names = [path.name for path in self.evaluations.glob("*")]
        numbers = sorted(int(name) for name in names if name.isdigit() and int(name) <= num_iterations)
        found = {number: self.evaluation(number) for number in numbers}
        return {number: evaluation for number, evaluation in found.items() if evaluation is not None}

    def write_evaluation(self, num_iterations: int, evaluation: Evaluation) -> None:
        """Writes a directory with the scores and images of an evaluation.

        Args:
            num_iterations: number of iterations before it.
            evaluation: what to write.
        """
        from ..evaluation.sheets import evaluation_sheet

        with written_aside(self._evaluation(num_iterations)) as aside:
            aside.mkdir()
            evaluation.save(aside / "scores.safetensors")
            write_json(aside / "scores.json", evaluation.table())
            evaluation_sheet(aside / "samples.png", evaluation)

    def _evaluation(self, num_iterations: int) -> Path:
        return self.evaluations / f"{num_iterations:06d}"

    def write_scores(self, name: str, evaluation: Evaluation) -> None:
        """Writes `eval_<name>.json`.

        Args:
            name: "before" or "after".
            evaluation: whose table to write.
        """
        write_json(self.path / f"eval_{name}.json", evaluation.table())

    def sweep(self) -> None:
        """Removes files that an interrupted run was still writing."""
        for directory in (self.path, self.checkpoints, self.evaluations):
            for left in directory.glob(f"{ASIDE}*"):
                remove(left)
