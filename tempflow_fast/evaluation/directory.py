"""The files of `tempflow-fast eval --directory`, from which an evaluation resumes.

    evaluation.json   settings, prompts and noise; a different evaluation is refused
    scores.jsonl      one line per image, written as scores arrive
    images/000123.png the first images, or all on request, in full size
    scores.json       every score, and the means with their intervals
    report.md         the same as tables
    samples.png       the first images with their prompts
    rewards.png       histograms of the scores

All processes of an evaluation must see the directory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import fail, require
from ..files import is_taken, write_json, written_aside
from ..prompts.sets import Entry
from .result import NUM_SHOWN, Evaluation, Noise, small
from .sheets import as_picture


class EvaluationDirectory:
    """Writes and reads the files of one evaluation; a `Store` of its scores.

    Args:
        path: the directory; it need not exist.
        all_images: whether to keep every image, not only the first ones.
    """

    def __init__(self, path: str | Path, all_images: bool = False) -> None:
        self.path, self._all_images = Path(path), all_images
        self._about, self._scores = self.path / "evaluation.json", self.path / "scores.jsonl"
        self.images = self.path / "images"

    def begin(self, facts: Mapping[str, Any], tasks: Sequence[str], metadata: Sequence[Entry]) -> None:
        """Writes what is evaluated, or checks it against what was written before.

        As long as there is no score, another evaluation may replace what was written.

        Args:
            facts: what the scores depend on in addition to the prompts, by name.
            tasks: the tasks of the prompt set.
            metadata: R prompts, one per image.

        Raises:
            ValueError: if the directory holds something else, or a different evaluation: it names the first difference.
        """
        about = json.loads(json.dumps({**facts, "tasks": tasks, "metadata": metadata}))
        if not self._about.is_file() and is_taken(self.path):
            expected = "a new or empty directory, or that of an evaluation to resume"
            fail("EvaluationDirectory", "path", expected, repr(str(self.path)))
        if not self._about.is_file() or not self.scores():
            write_json(self._about, about)
        known = self._read()
        for name in facts:
            expected = f"{known.get(name)} as in {str(self.path)!r}"
            require(known.get(name) == about[name], "EvaluationDirectory.begin", name, expected, about[name])
        if known["metadata"] != about["metadata"]:
            fail("EvaluationDirectory.begin", "metadata", f"the prompts in {str(self.path)!r}", "other prompts")

    def note_noise(self, noise: Noise) -> None:
        """Adds what the images start from, which is known when the model is loaded.

        Args:
            noise: of all images.
        """
        write_json(self._about, {**self._read(), "noise": asdict(noise)})

    def is_complete(self) -> bool:
        """Whether every image has its scores."""
        return self._about.is_file() and len(self.scores()) == len(self._read()["metadata"])

    def evaluation(self) -> Evaluation:
        """Reads the evaluation.

        Raises:
            ValueError: if it is not complete.
        """
        if not self.is_complete():
            fail("EvaluationDirectory", "path", "the directory of a finished evaluation", repr(str(self.path)))
        about, scores = self._read(), self.scores()
        pictures = {row: self.picture(row) for row in range(min(NUM_SHOWN, len(scores)))}
        noise = Noise.from_json(about["noise"])
        return Evaluation.of_rows(tuple(about["tasks"]), about["metadata"], scores, pictures, noise)

    def facts(self) -> dict[str, Any]:
        """Returns what the scores depend on in addition to prompts and noise, by name."""
        return {name: value for name, value in self._read().items() if name not in ("tasks", "metadata", "noise")}

    def scores(self) -> dict[int, dict[str, float]]:
        """Returns row -> name -> score for the rows that are done, without a line that was cut short."""
        if not self._scores.is_file():
            return {}
        whole = self._scores.read_text().rpartition("\n")[0].splitlines()
        return {line["row"]: line["scores"] for line in map(json.loads, whole)}

    def picture(self, row: int) -> Tensor:
        """Returns the `small` image [3, H, W] of a row below `NUM_SHOWN` that is done.

        Args:
            row: its index.
        """
        with Image.open(self._image(row)) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return small(pixels[None].float() / 255)[0]

    def keep_images(self, rows: Sequence[int], images: Tensor) -> None:
        """Writes the images that are to be kept, as PNG; each process writes its own.

        Args:
            rows: R indices.
            images: [R, 3, H, W] in [0, 1].
        """
        for row, image in zip(rows, images, strict=True):
            if self._all_images or row < NUM_SHOWN:
                # The name of the process is in the file name: two of them may draw the last row of a round.
                aside = self._image(row).with_suffix(f".{os.getpid()}.part")
                aside.parent.mkdir(parents=True, exist_ok=True)
                as_picture(image).save(aside, format="PNG")
                os.replace(aside, self._image(row))

    def keep_scores(self, scores: dict[int, dict[str, float]]) -> None:
        """Appends lines after the last complete one and flushes them to the disk.

        Args:
            scores: row -> name -> score, of new rows.
        """
        with self._scores.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            lines = (json.dumps({"row": row, "scores": values}) + "\n" for row, values in scores.items())
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file atomically.

        Args:
            name: its name in the directory.
            text: its contents.
        """
        with written_aside(self.path / name) as aside:
            aside.write_text(text)

    def _read(self) -> dict[str, Any]:
        return json.loads(self._about.read_text())

    def _image(self, row: int) -> Path:
        return self.images / f"{row:06d}.png"


def digest(path: Path) -> str:
    """Hashes weights.

    Args:
        path: a file, or a directory with safetensors.

    Returns:
        16 hexadecimal digits.
    """
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    state = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                state.update(block)
    return state.hexdigest()
