"""What an evaluation holds, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..prompts.entries import TASK, Entry, same_entry
from .intervals import OVERALL, Interval, task_intervals, task_means

NUM_SHOWN = 48
"""Number of images that every evaluation keeps, the first ones."""
SHOWN_SIDE = 256
"""Longer side, in pixels, to which those images are scaled down."""


@dataclass(frozen=True)
class Noise:
    """What the initial noise of row r depends on, in addition to r; equal ones give equal bits.

    Attributes:
        seed: the key of the noise.
        latent_shape: shape of one image's latents.
    """

    seed: int
    latent_shape: tuple[int, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Noise:
        """Returns the noise that `asdict` and JSON turned into `data`, where the shape is a list.

        Args:
            data: the fields by name.
        """
        return cls(data["seed"], tuple(data["latent_shape"]))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of R images."""

    tasks: tuple[str, ...]
    """The tasks of the prompt set, in its order."""
    metadata: list[Entry]
    """R prompts with their tasks."""
    measures: dict[str, Tensor]
    """Name -> [R] scores, float64, the most important measure first. In a run these are `accuracy` (1 or 0), if it has
    one, `reward`, and `reward_<name>` for each part of a sum."""
    images: Tensor
    """The first images, [min(R, NUM_SHOWN), 3, H, W] in [0, 1]."""
    noise: Noise
    """The noise that the images start from."""

    @classmethod
    def of_rows(
        cls,
        tasks: tuple[str, ...],
        metadata: list[Entry],
        scores: dict[int, dict[str, float]],
        pictures: dict[int, Tensor],
        noise: Noise,
    ) -> Evaluation:
        """Builds an evaluation from its rows.

        Args:
            tasks: the tasks of the prompt set.
            metadata: R prompts with their tasks.
            scores: row -> name -> score, for all R rows.
            pictures: row -> image [3, H, W], for the first rows.
            noise: what the images start from.
        """
        columns = {name: [scores[row][name] for row in range(len(metadata))] for name in scores[0]}
        measures = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
        return cls(tasks, metadata, measures, torch.stack([pictures[row] for row in sorted(pictures)]), noise)

    def table(self) -> dict[str, dict[str, float]]:
        """Returns task -> measure -> mean, with num_images; `overall` is the mean of the tasks, as in GenEval."""
        tags = self.tags
        means = {name: task_means(values, tags, self.tasks) for name, values in self.measures.items()}
        numbers = {task: tags.count(task) for task in self.tasks if task in tags} | {OVERALL: len(tags)}
        return {
            task: {**{name: mean[task] for name, mean in means.items()}, "num_images": number}
            for task, number in numbers.items()
        }

    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Returns task -> measure -> its mean with a 95 % interval, for the rows of `table`."""
        return self.intervals_of(self.measures)

    def intervals_of(self, measures: Mapping[str, Tensor]) -> dict[str, dict[str, Interval]]:
        """Returns task -> measure -> the mean with a 95 % interval of any values of these images.

        Args:
            measures: name -> [R] values; at least one.
        """
        found = {
            name: task_intervals(values, self.tags, self.tasks, self.prompt_keys) for name, values in measures.items()
        }
        return {task: {name: found[name][task] for name in measures} for task in next(iter(found.values()))}

    @property
    def tags(self) -> list[str]:
        """R tasks."""
        return [entry[TASK] for entry in self.metadata]

    @property
    def prompt_keys(self) -> list[tuple[str, ...]]:
        """R keys that are equal for images of one prompt, whatever the other fields of its entries."""
        return [same_entry(entry) for entry in self.metadata]

    def save(self, path: Path) -> None:
        """Writes everything to one safetensors file; the images have 8 bits per channel.

        Args:
            path: the file.
        """
        facts = {"tasks": self.tasks, "metadata": self.metadata, "noise": asdict(self.noise)}
        # safetensors sorts its tensors, so the order of the measures is stored as text.
        texts = {name: json.dumps(fact) for name, fact in {**facts, "measures": list(self.measures)}.items()}
        save_file({**self.measures, "images": (self.images * 255).round().byte().contiguous()}, path, texts)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Reads what `save` wrote.

        Args:
            path: the file.
        """
        with safe_open(path, "pt") as file:
            tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        facts = {name: json.loads(text) for name, text in texts.items()}
        return cls(
            tasks=tuple(facts["tasks"]),
            metadata=facts["metadata"],
            measures={name: tensors[name] for name in facts["measures"]},
            images=tensors["images"].float() / 255,
            noise=Noise.from_json(facts["noise"]),
        )


def stills(images: Tensor) -> Tensor:
    """Images as they are; of each video the first, the middle and the last frame, along its shorter side.

    Args:
        images: [R, 3, H, W] or [R, F, 3, H, W].

    Returns:
        [R, 3, H, W]
    """
    if images.dim() == 4:
        return images
    length, height, width = images.shape[1], *images.shape[3:]
    frames = [images[:, frame] for frame in (0, length // 2, length - 1)]
    return torch.cat(frames, dim=-1 if width <= height else -2)


def small(images: Tensor) -> Tensor:
    """Scales images down to a longer side of `SHOWN_SIDE` pixels.

    Args:
        images: [R, 3, H, W]; smaller ones stay as they are.
    """
    scale = SHOWN_SIDE / max(images.shape[2:])
    if scale >= 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return torch.nn.functional.interpolate(images, size=size, mode="area")
