"""The files of `tempflow-fast eval --directory`, from which an evaluation resumes.

    evaluation.json   settings, prompts and noise; a different evaluation is refused
    scores.jsonl      one line per image, written as scores arrive, with a digest of them and of what they depend on
    images/000123.png the first images, or all on request, in full size
    scores.json       every score, and the means with their intervals
    report.md         the same as tables
    samples.png       the first images with their prompts
    rewards.png       histograms of the scores
    digests.json      digests of the model's files, which are read once (see `tempflow_fast.checksums`)

All processes of an evaluation must see the directory.
"""

from __future__ import annotations

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

from ..checksums import digest_of
from ..errors import fail, require
from ..files import append_lines, is_taken, naming, read_json, read_lines, write_json
from ..prompts.sets import Entry
from ..text import shortened
from .result import NUM_SHOWN, Evaluation, Noise, small
from .sheets import as_picture

WRITTEN = ("scores.json", "report.md", "samples.png", "rewards.png", "digests.json")
"""Files that are written at the end."""


class EvaluationDirectory:
    """Writes and reads the files of one evaluation; a `Store` of its scores.

    Args:
        path: the directory; it need not exist.
        all_images: whether to keep every image, not only the first ones. A row whose image is to be kept is done only
            if its image is there.
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
        about = _sealed({"facts": dict(facts), "tasks": list(tasks), "metadata": list(metadata)})
        if not self._about.is_file() and is_taken(self.path):
            expected = "a new or empty directory, or that of an evaluation to resume, with an evaluation.json"
            fail("EvaluationDirectory", "path", expected, repr(str(self.path)))
        for path in (self._scores, *(self.path / name for name in WRITTEN)):
            require(
                not path.is_dir(), "EvaluationDirectory", str(path), "a file or absent", "a directory: move it away"
            )
        if not self._about.is_file() or not self._written():
            write_json(self._about, about)
        known = self._read()
        for name, value in about["facts"].items():
            expected = f"{shortened(known['facts'].get(name))} as in {str(self.path)!r}"
            holds = known["facts"].get(name) == value
            require(holds, "EvaluationDirectory.begin", name, expected, shortened(value))
        if known["metadata"] != about["metadata"] or known["tasks"] != about["tasks"]:
            fail("EvaluationDirectory.begin", "metadata", f"the prompts in {str(self.path)!r}", "other prompts")
        for left in self.images.glob("*.part"):
            left.unlink()

    def note_noise(self, noise: Noise) -> None:
        """Adds what the images start from, which is known when the model is loaded.

        Args:
            noise: of all images.

        Raises:
            ValueError: if there are scores of other noise.
        """
        known = self._read()
        expected = f"{known.get('noise')} as in {str(self.path)!r}"
        about = _sealed({**known, "noise": asdict(noise)})
        require(not self._written() or about == known, "EvaluationDirectory.note_noise", "noise", expected, noise)
        write_json(self._about, about)

    def is_complete(self) -> bool:
        """Whether every row is done."""
        return self._about.is_file() and len(self.scores()) == len(self._read()["metadata"])

    def evaluation(self) -> Evaluation:
        """Reads the evaluation.

        Raises:
            ValueError: if it is not complete, or one of its files is damaged.
        """
        if not self.is_complete():
            fail("EvaluationDirectory", "path", "the directory of a finished evaluation", repr(str(self.path)))
        about, scores = self._read(), self.scores()
        pictures = {row: self.picture(row) for row in range(min(NUM_SHOWN, len(scores)))}
        noise = Noise.from_json(about["noise"])
        return Evaluation.of_rows(tuple(about["tasks"]), about["metadata"], scores, pictures, noise)

    def facts(self) -> dict[str, Any]:
        """Returns what the scores depend on in addition to prompts and noise, by name."""
        return dict(self._read()["facts"])

    def scores(self) -> dict[int, dict[str, float]]:
        """Returns row -> name -> score for the rows that are done.

        A line counts if its digest shows that it is as it was written, for this evaluation, and if the image that is to
        be kept with it is there; the other rows are to be drawn again.
        """
        found = self._written()
        return {row: scores for row, scores in found.items() if not self._keeps(row) or self._image(row).is_file()}

    def _written(self) -> dict[int, dict[str, float]]:
        """Row -> name -> score, from the lines of this evaluation, with or without their images."""
        if not self._about.is_file():
            return {}
        about = self._read()
        lines = [line for line in read_lines(self._scores) if isinstance(line, dict)]
        return {
            line["row"]: line["scores"]
            for line in lines
            if line.get("digest") == _line_digest(about, line.get("row"), line.get("scores"))
        }

    def picture(self, row: int) -> Tensor:
        """Returns the `small` image [3, H, W] of a row below `NUM_SHOWN` that is done.

        Args:
            row: its index.

        Raises:
            ValueError: naming the file, if it is damaged.
        """
        try:
            with Image.open(self._image(row)) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for a damaged file
            advice = f"another content ({shortened(error)}): remove it, and the same command draws it again"
            fail("EvaluationDirectory", str(self._image(row)), "the image that was written", advice)
        return small(pixels[None].float() / 255)[0]

    def keep_images(self, rows: Sequence[int], images: Tensor) -> None:
        """Writes the images that are to be kept, as PNG; each process writes its own.

        Args:
            rows: R indices.
            images: [R, 3, H, W] in [0, 1].
        """
        for row, image in zip(rows, images, strict=True):
            if self._keeps(row):
                self.images.mkdir(exist_ok=True)
                # The name of the process is in the file name: two of them may draw the last row of a round.
                aside = self._image(row).with_suffix(f".{os.getpid()}.part")
                with naming(self._image(row)):
                    try:
                        as_picture(image).save(aside, format="PNG")
                        os.replace(aside, self._image(row))
                    finally:
                        aside.unlink(missing_ok=True)

    def keep_scores(self, scores: dict[int, dict[str, float]]) -> None:
        """Appends lines after the last complete one and flushes them to the disk.

        Args:
            scores: row -> name -> score, of new rows.
        """
        about = self._read()
        append_lines(
            self._scores,
            [{"row": row, "scores": s, "digest": _line_digest(about, row, s)} for row, s in scores.items()],
        )

    def _read(self) -> dict[str, Any]:
        about = read_json(self._about)
        is_whole = isinstance(about, dict) and about == _sealed(about)
        got = "damaged, or of an older version: evaluate into another directory"
        require(is_whole, "EvaluationDirectory", str(self._about), "as it was written", got)
        return about

    def _keeps(self, row: int) -> bool:
        """Whether the image of a row is to be kept."""
        return self._all_images or row < NUM_SHOWN

    def _image(self, row: int) -> Path:
        return self.images / f"{row:06d}.png"


def _sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is evaluated, as JSON has it, with a digest of it."""
    content = {name: value for name, value in about.items() if name != "digest"}
    return {**json.loads(json.dumps(content)), "digest": digest_of(content)}


def _line_digest(about: Mapping[str, Any], row: object, scores: object) -> str:
    """Ties the scores of a row to the evaluation that they are of."""
    return digest_of([about["digest"], row, scores])
