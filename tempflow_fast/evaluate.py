"""A policy's score on fixed prompts and fixed noise: the same images before and after training, but for the policy."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .policies.base import Policy
from .prompts import get_prompts
from .rewards import get_reward
from .sample import sample_images
from .schedule import StepTable

OVERALL = "overall"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What R images scored."""

    tasks: tuple[str, ...]
    """In the order of the prompt set."""
    metadata: list[dict[str, Any]]
    """R prompts with their tasks."""
    accuracy: Tensor
    """[R], 1 where the image is strictly right, else 0; float64."""
    reward: Tensor
    """[R], the training reward; float64."""
    images: Tensor
    """The first images, [num_shown, 3, H, W] in [0, 1]."""

    def table(self) -> dict[str, dict[str, float]]:
        """Accuracy, reward and num_images per task and `overall`, which is the mean of the tasks, as in GenEval."""
        tags, scores = [entry["tag"] for entry in self.metadata], {"accuracy": self.accuracy, "reward": self.reward}
        rows = {}
        for task in filter(tags.__contains__, self.tasks):
            chosen = torch.tensor([tag == task for tag in tags])
            rows[task] = {name: score[chosen].mean().item() for name, score in scores.items()}
            rows[task]["num_images"] = int(chosen.sum())
        overall = {name: sum(row[name] for row in rows.values()) / len(rows) for name in scores}
        return rows | {OVERALL: overall | {"num_images": len(tags)}}


def evaluate(
    policy: Policy,
    table: StepTable,
    prompts: str,
    reward: str,
    accuracy: str,
    num_images: int,
    seed: int = 0,
    guidance_scale: float = 1.0,
    max_batch: int | None = None,
    num_shown: int = 24,
) -> Evaluation:
    """Draws images of held-out prompts by the ODE and scores them.

    Args:
        policy: the model.
        table: the schedule to sample with.
        prompts: name of the prompt set; its held-out prompts are drawn task by task in turn, so that tasks weigh alike.
        reward: name of the training reward.
        accuracy: name of a reward that is 1 where an image is right and 0 elsewhere.
        num_images: R.
        seed: chooses prompts and noise; the same seed gives the same ones to every policy.
        guidance_scale, max_batch: as in `sample_images`.
        num_shown: how many images the result keeps.

    Raises:
        ValueError: for fewer than one image, or an unknown name.
    """
    if num_images < 1:
        raise ValueError(f"evaluate: num_images must be >= 1, got {num_images}")
    source, reward_fn, accuracy_fn = get_prompts(prompts), get_reward(reward), get_reward(accuracy)
    heldout = source.heldout_prompts()
    metadata = source.draw(heldout, num_images, random.Random(seed))
    texts = [entry["prompt"] for entry in metadata]
    images = sample_images(policy, texts, table, seed, guidance_scale, max_batch)
    scores = (torch.as_tensor(score(images, texts, metadata)).double().cpu() for score in (accuracy_fn, reward_fn))
    tasks = tuple(dict.fromkeys(entry["tag"] for entry in heldout))
    return Evaluation(tasks, metadata, *scores, images=images[:num_shown])
