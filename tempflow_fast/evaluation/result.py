"""What an evaluation holds, and the file it is kept in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..prompts.sets import TASK, Entry
from .intervals import OVERALL, Interval, task_intervals, task_means

NUM_SHOWN = 48
SHOWN_SIDE = 256
"""Images that are kept for looking at are scaled down to so many pixels."""


@dataclass(frozen=True)
class Noise:
    """What the initial noise of row r depends on beside r; equal ones start from equal bits."""

    seed: int
    latent_shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What R images scored."""

    tasks: tuple[str, ...]
    """In the order of the prompt set."""
    metadata: list[Entry]
    """R prompts with their tasks."""
    measures: dict[str, Tensor]
    """Name -> [R], float64, the one that matters most first. Where a run knows what is strictly right, that is
    `accuracy`, 1 or 0; its training reward is `reward`, and `reward_<name>` the parts of a sum."""
    images: Tensor
    """The first images, [num_shown, 3, H, W] in [0, 1]."""
    noise: Noise

    @classmethod
    def of_rows(
        cls,
        tasks: tuple[str, ...],
        metadata: list[Entry],
        scores: dict[int, dict[str, float]],
        pictures: dict[int, Tensor],
        noise: Noise,
    ) -> Evaluation:
        """From the scores of all rows by name, and pictures [3, H, W] of the first ones."""
        columns = {name: [scores[row][name] for row in range(len(metadata))] for name in scores[0]}
        measures = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
        return cls(tasks, metadata, measures, torch.stack([pictures[row] for row in sorted(pictures)]), noise)

    def table(self) -> dict[str, dict[str, float]]:
        """The measures and num_images per task and `overall`, which is the mean of the tasks, as in GenEval."""
        tags = self.tags
        means = {name: task_means(values, tags, self.tasks) for name, values in self.measures.items()}
        numbers = {task: tags.count(task) for task in self.tasks if task in tags} | {OVERALL: len(tags)}
        return {
            task: {**{name: mean[task] for name, mean in means.items()}, "num_images": number}
            for task, number in numbers.items()
        }

    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Task -> measure -> its mean with a 95 % interval, for the rows of `table`."""
        found = {
            name: task_intervals(values, self.tags, self.tasks, self.prompt_keys)
            for name, values in self.measures.items()
        }
        return {task: {name: by_task[task] for name, by_task in found.items()} for task in self.table()}

    @property
    def tags(self) -> list[str]:
        """R tasks."""
        return [entry[TASK] for entry in self.metadata]

    @property
    def prompt_keys(self) -> list[str]:
        """R texts that are equal for images of one prompt."""
        return [json.dumps(entry, sort_keys=True) for entry in self.metadata]

    def save(self, path: Path) -> None:
        """Writes everything as one safetensors file; of the images, 8 bits per colour."""
        facts = {"tasks": self.tasks, "metadata": self.metadata, "noise": asdict(self.noise)}
        # safetensors sorts its tensors, so the order of the measures is kept as text.
        texts = {name: json.dumps(fact) for name, fact in {**facts, "measures": list(self.measures)}.items()}
        save_file({**self.measures, "images": (self.images * 255).round().byte().contiguous()}, path, texts)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """What `save` wrote."""
        with safe_open(path, "pt") as file:
            tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        facts = {name: json.loads(text) for name, text in texts.items()}
        return cls(
            tasks=tuple(facts["tasks"]),
            metadata=facts["metadata"],
            measures={name: tensors[name] for name in facts["measures"]},
            images=tensors["images"].float() / 255,
            noise=Noise(facts["noise"]["seed"], tuple(facts["noise"]["latent_shape"])),
        )


def small(images: Tensor) -> Tensor:
    """Images [R, 3, H, W] scaled down to fit `SHOWN_SIDE`; small ones as they are."""
    scale = SHOWN_SIDE / max(images.shape[2:])
    if scale >= 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return torch.nn.functional.interpolate(images, size=size, mode="area")
