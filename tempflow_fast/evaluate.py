"""A policy's score on fixed prompts and fixed noise: the same images before and after training, but for the policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .batching import equal_pieces
from .intervals import OVERALL, Interval, task_intervals, task_means
from .policies.base import Policy
from .processes import Processes
from .prompts import TASK, Entry, PromptSet, get_prompts
from .rewards import RewardError, get_reward
from .sample import sample_images
from .schedule import StepTable
from .train_config import TaskConfig, TrainConfig

NUM_SHOWN = 48
SHOWN_SIDE = 256
"""Images that are kept for looking at are scaled down to so many pixels."""

Measure = Callable[[Tensor, Sequence[str], Sequence[Entry]], dict[str, Tensor]]
"""Images [R, 3, H, W], prompts and metadata -> name -> scores [R], float64 on the host; always the same names."""


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


class Store(Protocol):
    """Where scores are kept as they come, so that an evaluation goes on where it was stopped; one for all processes."""

    def scores(self) -> dict[int, dict[str, float]]:
        """Row -> name -> score, of the rows that are done."""
        ...

    def picture(self, row: int) -> Tensor:
        """The `small` image [3, H, W] of a row below `NUM_SHOWN` that is done."""
        ...

    def keep_images(self, rows: Sequence[int], images: Tensor) -> None:
        """Called by each process with its own images [R, 3, H, W], before `keep_scores`."""
        ...

    def keep_scores(self, scores: dict[int, dict[str, float]]) -> None:
        """Called by the main process alone: these rows are done."""
        ...


def score(config: TrainConfig, policy: Policy, processes: Processes | None = None) -> Evaluation:
    """The policy's evaluation as a run with these settings does it."""
    return evaluate(config, policy, task_measure(config.task), processes)


def evaluate(
    config: TrainConfig,
    policy: Policy,
    measure: Measure,
    processes: Processes | None = None,
    store: Store | None = None,
) -> Evaluation:
    """Draws images of held-out prompts by the ODE and scores them, at most `max_batch` at a time in each process.

    Args:
        config: which prompts, how many, from which noise, by how many steps: all but what `measure` says.
        policy: the model.
        measure: scores images.
        processes: those that share the work; each of them gets the whole result.
        store: keeps scores as they come, and has those of an earlier start.

    Raises:
        RewardError: in all processes, where a reward failed in one; its sample is the row.
    """
    processes, own = processes or Processes(), config.evaluation
    table = config.grpo.table(policy) if own.eval_steps is None else _plain_table(policy, own.eval_steps)
    prompts, metadata = heldout(config)
    known = {} if store is None else store.scores()
    missing = [row for row in range(len(metadata)) if row not in known]
    pictures = {row: store.picture(row) for row in known if row < NUM_SHOWN}
    limit = config.grpo.max_batch
    for piece in equal_pieces(len(missing), None if limit is None else limit * processes.count):
        rows = missing[piece]
        mine = _share(rows, processes)
        entries = [metadata[row] for row in mine]
        texts = [entry["prompt"] for entry in entries]
        images = sample_images(policy, texts, table, own.eval_seed, config.grpo.guidance_scale, limit, mine)
        scores = _scored(measure, images, entries, mine, metadata, processes)
        if store is not None:
            store.keep_images(mine, images)
        found = _collected(torch.stack(list(scores.values()), 1), mine, rows, processes).tolist()
        fresh = {row: dict(zip(scores, values, strict=True)) for row, values in zip(rows, found, strict=True)}
        if store is not None and processes.is_main:
            store.keep_scores(fresh)
        known |= fresh
        if shown := [row for row in rows if row < NUM_SHOWN]:
            pictures |= zip(shown, _collected(small(images), mine, shown, processes), strict=True)
    return Evaluation.of_rows(prompts.tasks, metadata, known, pictures, Noise(own.eval_seed, policy.latent_shape))


def heldout(config: TrainConfig) -> tuple[PromptSet, list[Entry]]:
    """The prompts that a run with these settings evaluates with: their set, and the R entries drawn from it."""
    task, own = config.task, config.evaluation
    prompts = get_prompts(task.prompts, task.eval_prompts, task.prompt_column)
    return prompts, prompts.heldout(own.eval_images, own.eval_seed)


def task_measure(task: TaskConfig) -> Measure:
    """`accuracy` where the task has one, `reward`, and the parts of a sum, also those that are only watched."""
    reward = get_reward(task.reward)
    accuracy = None if task.accuracy is None else get_reward(task.accuracy)

    def measure(images: Tensor, prompts: Sequence[str], metadata: Sequence[Entry]) -> dict[str, Tensor]:
        scores = reward.score(images, prompts, metadata)
        parts = {f"reward_{name}": part for name, part in scores.parts.items()} if len(scores.parts) > 1 else {}
        right = {} if accuracy is None else {"accuracy": accuracy(images, prompts, metadata)}
        return {**right, "reward": scores.total, **parts}

    return measure


def reward_measure(spec: str) -> Measure:
    """Every reward of `spec` (see `get_reward`) under its own name; weights play no part."""
    reward = get_reward(spec)
    return lambda images, prompts, metadata: reward.score(images, prompts, metadata).parts


def _plain_table(policy: Policy, num_steps: int) -> StepTable:
    """The model's own schedule without noise."""
    from .schedule import step_table

    return step_table(policy.sigmas(num_steps), "ode")


def _share(rows: Sequence[int], processes: Processes) -> list[int]:
    """The rows of this process. All have as many, so that all make the same network calls; the last may repeat.

    The same row gives the same image everywhere, so it does not matter who computes it twice.
    """
    rounds = -(-len(rows) // processes.count)
    places = (turn * processes.count + processes.index for turn in range(rounds))
    return [rows[min(place, len(rows) - 1)] for place in places]


def _scored(
    measure: Measure,
    images: Tensor,
    entries: Sequence[Entry],
    rows: Sequence[int],
    metadata: Sequence[Entry],
    processes: Processes,
) -> dict[str, Tensor]:
    """The scores of this process's images; a failure in one process is raised in all, or they would wait for it."""
    scores, error = {}, None
    try:
        scores = measure(images, [entry["prompt"] for entry in entries], entries)
    except RewardError as failure:
        error = RewardError(failure.name, rows[failure.sample], failure.prompt, failure.reason)
    failed = int(processes.max(torch.tensor(-1 if error is None else error.sample)))
    if error is not None:
        raise error
    if failed >= 0:
        raise RewardError("of another process", failed, metadata[failed]["prompt"], "that process says why")
    return scores


def _collected(part: Tensor, mine: Sequence[int], rows: Sequence[int], processes: Processes) -> Tensor:
    """[len(rows), ...] of all processes, from this one's part [R, ...], which are the rows `mine`; surplus ones go."""
    places = {row: place for place, row in enumerate(rows)}
    whole = torch.full((len(rows), *part.shape[1:]), -torch.inf, dtype=part.dtype)
    for row, value in zip(mine, part, strict=True):
        if row in places:
            whole[places[row]] = value
    return processes.max(whole)


def small(images: Tensor) -> Tensor:
    """Images [R, 3, H, W] scaled down to fit `SHOWN_SIDE`; small ones as they are."""
    scale = SHOWN_SIDE / max(images.shape[2:])
    if scale >= 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[2:]]
    return torch.nn.functional.interpolate(images, size=size, mode="area")
