"""A policy's score on fixed prompts and fixed noise: the same images before and after training, but for the policy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .policies.base import Policy
from .processes import Processes
from .prompts import TASK, PromptSet, get_prompts
from .rewards import Reward, get_reward
from .sample import sample_images
from .schedule import StepTable
from .train_config import TrainConfig

OVERALL = "overall"
NUM_SHOWN = 48
SHOWN_SIDE = 256
"""Images that are kept for looking at are scaled down to so many pixels."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What R images scored."""

    tasks: tuple[str, ...]
    """In the order of the prompt set."""
    metadata: list[dict[str, Any]]
    """R prompts with their tasks."""
    reward: Tensor
    """[R], the training reward; float64."""
    images: Tensor
    """The first images, [num_shown, 3, H, W] in [0, 1]."""
    accuracy: Tensor | None = None
    """[R], 1 where the image is strictly right, else 0; float64. None where the run has no such measure."""

    @property
    def measures(self) -> dict[str, Tensor]:
        """Name -> [R], the one that matters most first."""
        return {"reward": self.reward} if self.accuracy is None else {"accuracy": self.accuracy, "reward": self.reward}

    def table(self) -> dict[str, dict[str, float]]:
        """The measures and num_images per task and `overall`, which is the mean of the tasks, as in GenEval."""
        tags = [entry[TASK] for entry in self.metadata]
        rows = {}
        for task in filter(tags.__contains__, self.tasks):
            chosen = torch.tensor([tag == task for tag in tags])
            rows[task] = {name: score[chosen].mean().item() for name, score in self.measures.items()}
            rows[task]["num_images"] = int(chosen.sum())
        overall = {name: sum(row[name] for row in rows.values()) / len(rows) for name in self.measures}
        return rows | {OVERALL: overall | {"num_images": len(tags)}}

    def save(self, path: Path) -> None:
        """Writes everything as one safetensors file; of the images, 8 bits per colour."""
        texts = {"tasks": json.dumps(self.tasks), "metadata": json.dumps(self.metadata)}
        save_file({**self.measures, "images": (self.images * 255).round().byte().contiguous()}, path, texts)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """What `save` wrote."""
        with safe_open(path, "pt") as file:
            tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        return cls(
            tasks=tuple(json.loads(texts["tasks"])),
            metadata=json.loads(texts["metadata"]),
            reward=tensors["reward"],
            images=tensors["images"].float() / 255,
            accuracy=tensors.get("accuracy"),
        )


def score(config: TrainConfig, policy: Policy, processes: Processes | None = None) -> Evaluation:
    """The policy's evaluation as a run with these settings does it."""
    grpo, own, task = config.grpo, config.evaluation, config.task
    table = grpo.table(policy) if own.eval_steps is None else _plain_table(policy, own.eval_steps)
    return evaluate(
        policy,
        table,
        get_prompts(task.prompts, task.eval_prompts, task.prompt_column),
        get_reward(task.reward),
        None if task.accuracy is None else get_reward(task.accuracy),
        own.eval_images,
        own.eval_seed,
        grpo.guidance_scale,
        grpo.max_batch,
        processes=processes,
    )


def evaluate(
    policy: Policy,
    table: StepTable,
    prompts: PromptSet,
    reward: Reward,
    accuracy: Reward | None,
    num_images: int,
    seed: int = 0,
    guidance_scale: float = 1.0,
    max_batch: int | None = None,
    num_shown: int = NUM_SHOWN,
    processes: Processes | None = None,
) -> Evaluation:
    """Draws images of held-out prompts by the ODE and scores them.

    Args:
        policy: the model.
        table: the schedule to sample with.
        prompts: its held-out prompts are drawn, task by task in turn, so that tasks weigh alike.
        reward: the training reward.
        accuracy: a reward that is 1 where an image is right and 0 elsewhere; None: not counted.
        num_images: R.
        seed: chooses prompts and noise; the same seed gives the same ones to every policy.
        guidance_scale, max_batch: as in `sample_images`.
        num_shown: how many images the result keeps.
        processes: those that share the work; each of them gets the whole result.

    Raises:
        ValueError: for fewer than one image.
    """
    if num_images < 1:
        raise ValueError(f"evaluate: num_images must be >= 1, got {num_images}")
    processes = processes or Processes()
    metadata = prompts.heldout(num_images, seed)
    rows = _share(num_images, processes)
    entries = [metadata[row] for row in rows]
    texts = [entry["prompt"] for entry in entries]
    images = sample_images(policy, texts, table, seed, guidance_scale, max_batch, rows)
    measures = [measure for measure in (reward, accuracy) if measure is not None]
    scores = [torch.as_tensor(measure(images, texts, entries)).double().cpu() for measure in measures]
    whole = [_collected(score, rows, num_images, processes) for score in scores]
    shown = [row for row in rows if row < num_shown]
    kept = _collected(_small(images[: len(shown)]), shown, min(num_shown, num_images), processes)
    return Evaluation(prompts.tasks, metadata, whole[0], kept, *whole[1:])


def _plain_table(policy: Policy, num_steps: int) -> StepTable:
    """The model's own schedule without noise."""
    from .schedule import step_table

    return step_table(policy.sigmas(num_steps), "ode")


def _share(num_rows: int, processes: Processes) -> list[int]:
    """The rows of this process, rising. All have as many, so that all make the same network calls; the last may repeat.

    The same row gives the same image everywhere, so it does not matter who computes it twice.
    """
    rounds = -(-num_rows // processes.count)
    return [min(turn * processes.count + processes.index, num_rows - 1) for turn in range(rounds)]


def _collected(part: Tensor, rows: Iterable[int], num_rows: int, processes: Processes) -> Tensor:
    """[num_rows, ...] of all processes, from this one's `rows`."""
    whole = torch.full((num_rows, *part.shape[1:]), -torch.inf, dtype=part.dtype)
    for row, value in zip(rows, part, strict=True):
        whole[row] = value
    return processes.max(whole)


def _small(images: Tensor) -> Tensor:
    """Images [R, 3, H, W] scaled down to fit `SHOWN_SIDE`; small ones as they are."""
    scale = SHOWN_SIDE / max(images.shape[2:])
    if scale >= 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return torch.nn.functional.interpolate(images, size=size, mode="area")
