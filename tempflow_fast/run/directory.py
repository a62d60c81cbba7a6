"""The files of a training run.

    config.json         the settings
    starts.jsonl        one line per start: its iteration, the settings that had changed, and what computes
    digests.json        digests of the model's files, which are read once (see `tempflow_fast.checksums`)
    latest.json         the number of iterations of the latest checkpoint
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
Directories with weights or scores hold checksums, see `tempflow_fast.checksums`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from errno import ENOENT
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checksums import CHECKSUMS, damage, write_checksums
from ..errors import fail, require
from ..files import (
    ASIDE,
    append_line,
    is_aside,
    is_taken,
    read_json,
    read_lines,
    remove,
    write_json,
    write_text,
    written_aside,
)
from ..settings.read import read_settings
from ..settings.run import TrainConfig
from .numbered import all_numbered, checkpoint_config, find_checkpoint, numbered

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
        self._config, self._latest = self.path / "config.json", self.path / "latest.json"
        self._metrics, self._starts = self.path / "metrics.jsonl", self.path / "starts.jsonl"
        self.digests = self.path / "digests.json"
        tables = [self.path / f"eval_{name}.json" for name in ("before", "after")]
        drawings = [self.curve, self.signs, self.sheet, self.scores]
        self._files = [self._config, self._latest, self.digests, self._metrics, self._starts, *tables, *drawings]
        self._directories = [self.model, self.lora, self.logs, self.checkpoints, self.evaluations]

    def exists(self) -> bool:
        """Returns whether this is the directory of a run: one with settings, or with checkpoints, which have a copy."""
        return self._config.is_file() or bool(all_numbered(self.checkpoints))

    def check_free(self) -> None:
        """Checks that a new run may start here.

        Raises:
            ValueError: if the path is a file or a directory that is not empty.
        """
        if is_taken(self.path):
            kind = "is not empty" if self.path.is_dir() else "is a file"
            got = f"{str(self.path)!r}, which {kind}: remove it or name another"
            fail("RunDirectory", "path", "a new or empty directory, or that of a run to resume", got)

    def check_kinds(self) -> None:
        """Checks that nothing is in the way of the files that the run will write, even at its end.

        Raises:
            ValueError: naming a directory in place of a file, or a file in place of a directory.
        """
        for path in self._files:
            require(not path.is_dir(), "RunDirectory", str(path), "a file or absent", "a directory: move it away")
        for path in self._directories:
            is_in_way = path.exists() and not path.is_dir()
            require(not is_in_way, "RunDirectory", str(path), "a directory or absent", "a file: move it away")

    def write_config(self, config: TrainConfig) -> None:
        """Writes `config.json`.

        Args:
            config: the settings.
        """
        write_text(self._config, config.to_json())

    def read_config(self) -> TrainConfig:
        """Reads the settings of the run; if `config.json` is gone, from the newest undamaged checkpoint.

        Raises:
            ValueError: if this is not the directory of a run, or naming its file and what is wrong in it.
        """
        if self._config.exists():
            return read_settings(TrainConfig, read_json(self._config), str(self._config))
        checkpoint = find_checkpoint(self.checkpoints).newest
        if checkpoint is None:
            fail("RunDirectory", "path", "the directory of a run, with a config.json", repr(str(self.path)))
        return checkpoint_config(checkpoint)

    def append_start(self, facts: Mapping[str, Any]) -> None:
        """Appends a line to `starts.jsonl`.

        Args:
            facts: of this start, by name.
        """
        append_line(self._starts, facts)

    def append_metrics(self, metrics: Mapping[str, float]) -> None:
        """Appends a line to `metrics.jsonl`, and waits until it is on the disk.

        Args:
            metrics: of one iteration; numbers that are not finite are written as null, since JSON has no word for them.
        """
        valid = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_line(self._metrics, valid)

    def read_metrics(self) -> list[dict[str, float]]:
        """Returns the rows of `metrics.jsonl` in the order of iterations, with NaN for null; damaged ones are left out.

        Where an iteration has several rows, the last one counts.
        """
        rows = {row["iteration"]: row for row in read_lines(self._metrics) if _is_metrics(row)}
        return [
            {name: math.nan if value is None else value for name, value in rows[number].items()}
            for number in sorted(rows)
        ]

    def keep_metrics(self, num_iterations: int) -> str:
        """Removes the metrics of later iterations, which will be done again.

        Args:
            num_iterations: the last iteration to keep.

        Returns:
            A sentence if earlier ones are damaged or missing, else nothing. A damaged file is kept under another name.
        """
        lines = read_lines(self._metrics)
        kept = [row for row in self.read_metrics() if row["iteration"] <= num_iterations]
        damaged = sum(not _is_metrics(line) for line in lines)
        if damaged:
            os.replace(self._metrics, _free(self._metrics.with_name("metrics.damaged.jsonl")))
        if damaged or len(kept) < len(lines) or not self._ends_whole():
            values = [{k: None if math.isnan(v) else v for k, v in row.items()} for row in kept]
            write_text(self._metrics, "".join(json.dumps(row) + "\n" for row in values))
        if damaged:
            return f"metrics.jsonl had {damaged} damaged lines; what it was is in metrics.damaged.jsonl"
        missing = num_iterations - len(kept)
        return f"metrics.jsonl lacks {missing} of {num_iterations} iterations" if missing else ""

    def _ends_whole(self) -> bool:
        """Whether the last line of the metrics is complete."""
        return not self._metrics.exists() or self._metrics.read_bytes()[-1:] in (b"", b"\n")

    def note_checkpoint(self, num_iterations: int) -> None:
        """Writes `latest.json`, which shows that there are checkpoints even if their directory is lost.

        Args:
            num_iterations: of the checkpoint that was just written.
        """
        self._check_present()
        write_json(self._latest, {"num_iterations": num_iterations})

    def check_lost(self) -> None:
        """Checks that a run without a checkpoint has not lost one: it would start again and overwrite its results.

        Raises:
            ValueError: if it had one.
        """
        if self._latest.exists():
            got = f"nothing: to start from the beginning, remove {str(self.path)!r} or name another directory"
            fail("RunDirectory", str(self.checkpoints), "the checkpoints that the run has written", got)

    def write_tuned(self, policy: DiffusersPolicy, adapter: bool) -> None:
        """Writes the tuned weights.

        Args:
            policy: the model.
            adapter: whether to write only its adapter, to `lora/`, instead of the model, to `model/`.
        """
        self._check_present()
        with written_aside(self.lora if adapter else self.model) as aside:
            if adapter:
                policy.save_lora(aside)
            else:
                policy.save(aside)
            write_checksums(aside)

    def tuned(self) -> Path:
        """Returns the directory with the tuned weights, an adapter or a model.

        Raises:
            ValueError: if there is none yet, or naming the file that is damaged.
        """
        path = self.lora if self.lora.is_dir() else self.model
        if not path.is_dir():
            got = f"{str(self.path)!r}, where training has not ended"
            fail("RunDirectory", "path", "a run directory with a tuned model", got)
        reason = damage(path) if (path / CHECKSUMS).exists() else None  # version 0.1.0 wrote none
        require(reason is None, "RunDirectory", str(path), "as it was written", reason)
        return path

    def evaluation(self, num_iterations: int) -> Evaluation | None:
        """Reads an evaluation, of whatever weights it is.

        Args:
            num_iterations: number of iterations before it.

        Returns:
            The evaluation; None if there is none.
        """
        from ..evaluation.result import Evaluation

        path = numbered(self.evaluations, num_iterations) / "scores.safetensors"
        return Evaluation.load(path) if path.is_file() else None

    def write_scores(self, name: str, evaluation: Evaluation) -> None:
        """Writes `eval_<name>.json`.

        Args:
            name: "before" or "after".
            evaluation: whose table to write.
        """
        write_json(self.path / f"eval_{name}.json", evaluation.table())

    def sweep(self) -> None:
        """Removes files that an interrupted run was still writing."""
        own = {path.name for path in (*self._files, *self._directories)}
        for left in self._leftovers(self.path):
            if left.name.removeprefix(ASIDE).removeprefix("removed-") in own:
                remove(left)
        for directory in (self.checkpoints, self.evaluations):
            for left in self._leftovers(directory):
                if left.name.removeprefix(ASIDE).removeprefix("removed-").isdecimal():
                    remove(left)

    @staticmethod
    def _leftovers(directory: Path) -> list[Path]:
        return [path for path in directory.iterdir() if is_aside(path)] if directory.is_dir() else []

    def _check_present(self) -> None:
        """Refuses to make the directory anew: without its settings, the next start would not know it."""
        if not self.path.is_dir():
            raise FileNotFoundError(ENOENT, "The run directory is gone", str(self.path))


def _is_metrics(row: Any) -> bool:
    """Whether a line is the metrics of an iteration."""
    return (
        isinstance(row, dict)
        and type(row.get("iteration")) in (int, float)
        and all(value is None or type(value) in (int, float) for value in row.values())
    )


def _free(path: Path) -> Path:
    """The path, or with a number if there is such a file."""
    paths = (path.with_stem(f"{path.stem}-{number}") if number > 1 else path for number in count(1))
    return next(path for path in paths if not path.exists())
