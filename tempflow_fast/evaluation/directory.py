"""What `tempflow-fast eval --directory` leaves on disk, and goes on from.

    evaluation.json   what was evaluated and from which noise; another evaluation is refused here
    scores.jsonl      a line per image, as they come
    images/000123.png the first images, or all on request, in full size
    scores.json       every score, and the means with their intervals
    report.md         the same as tables
    samples.png       the first images with their prompts
    rewards.png       how the scores spread

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

from ..files import write_json, written_aside
from ..prompts.sets import Entry
from .result import NUM_SHOWN, Evaluation, Noise, small


class EvaluationDirectory:
    """Writes and reads the files of one evaluation; a `Store` of its scores."""

    def __init__(self, path: str | Path, all_images: bool = False) -> None:
        """`all_images`: keep every image, not only the first ones."""
        self.path, self._all_images = Path(path), all_images
        self._about, self._scores = self.path / "evaluation.json", self.path / "scores.jsonl"
        self.images = self.path / "images"

    def begin(self, facts: Mapping[str, Any], tasks: Sequence[str], metadata: Sequence[Entry]) -> None:
        """Notes what is evaluated, or finds it noted. Until there is a score, another evaluation may take its place.

        Args:
            facts: whatever the scores depend on beside the prompts, by name.
            tasks, metadata: of the prompts, one entry per image.

        Raises:
            ValueError: if the directory holds something else, or another evaluation: it names the first difference.
        """
        about = json.loads(json.dumps({**facts, "tasks": tasks, "metadata": metadata}))
        if not self._about.is_file() and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"directory must be new or empty, or an evaluation's, got {str(self.path)!r}")
        if not self._about.is_file() or not self.scores():
            write_json(self._about, about)
        known = self._read()
        for name in facts:
            if known.get(name) != about[name]:
                got = f"{about[name]}, where {str(self.path)!r} has {known.get(name)}"
                raise ValueError(f"directory must be of an evaluation with the same {name}, got {got}")
        if known["metadata"] != about["metadata"]:
            raise ValueError(f"directory must be of an evaluation of the same prompts, got {str(self.path)!r}")

    def note_noise(self, noise: Noise) -> None:
        """Notes what the images start from, once the model is there to say."""
        write_json(self._about, {**self._read(), "noise": asdict(noise)})

    def is_complete(self) -> bool:
        """Whether every image is scored."""
        return self._about.is_file() and len(self.scores()) == len(self._read()["metadata"])

    def evaluation(self) -> Evaluation:
        """What was found; ValueError unless it is complete."""
        if not self.is_complete():
            raise ValueError(f"directory must hold an evaluation that was finished, got {str(self.path)!r}")
        about, scores = self._read(), self.scores()
        noise = Noise(about["noise"]["seed"], tuple(about["noise"]["latent_shape"]))
        pictures = {row: self.picture(row) for row in range(min(NUM_SHOWN, len(scores)))}
        return Evaluation.of_rows(tuple(about["tasks"]), about["metadata"], scores, pictures, noise)

    def facts(self) -> dict[str, Any]:
        """What the scores depend on beside prompts and noise."""
        return {name: value for name, value in self._read().items() if name not in ("tasks", "metadata", "noise")}

    def scores(self) -> dict[int, dict[str, float]]:
        """Row -> name -> score, of the rows that are done; a line that was cut short does not count."""
        if not self._scores.is_file():
            return {}
        whole = self._scores.read_text().rpartition("\n")[0].splitlines()
        return {line["row"]: line["scores"] for line in map(json.loads, whole)}

    def picture(self, row: int) -> Tensor:
        """The `small` image [3, H, W] of one of the first rows that is done."""
        with Image.open(self._image(row)) as image:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return small(pixels[None].float() / 255)[0]

    def keep_images(self, rows: Sequence[int], images: Tensor) -> None:
        """Writes those that are to be kept of images [R, 3, H, W], as PNG; each process its own."""
        for row, image in zip(rows, images, strict=True):
            if self._all_images or row < NUM_SHOWN:
                pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
                # Under the name of a process: the last row of a round may be drawn by two of them.
                aside = self._image(row).with_suffix(f".{os.getpid()}.part")
                aside.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(aside, format="PNG")
                os.replace(aside, self._image(row))

    def keep_scores(self, scores: dict[int, dict[str, float]]) -> None:
        """Adds lines, behind the last whole one, and brings them to the disk."""
        with self._scores.open("a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            lines = (json.dumps({"row": row, "scores": values}) + "\n" for row, values in scores.items())
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def write_text(self, name: str, text: str) -> None:
        """Writes a whole file."""
        with written_aside(self.path / name) as aside:
            aside.write_text(text)

    def _read(self) -> dict[str, Any]:
        return json.loads(self._about.read_text())

    def _image(self, row: int) -> Path:
        return self.images / f"{row:06d}.png"


def digest(path: Path) -> str:
    """16 hexadecimal digits of the safetensors in a directory, or of a file: other weights have others."""
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    state = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                state.update(block)
    return state.hexdigest()
