"""Scoring a policy on fixed prompts and fixed noise, so that only the policy differs between two evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..batching import equal_pieces
from ..choices import NOISELESS
from ..errors import NotFiniteError
from ..ops.schedule import StepTable, step_table
from ..policies.base import Policy
from ..processes import Processes
from ..prompts.sets import Entry, PromptSet, get_prompts
from ..rewards import RewardError
from ..settings.run import TrainConfig
from .measures import Measure, task_measure
from .result import NUM_SHOWN, Evaluation, Noise, small, stills
from .sample import sample_images

FEWEST_IMAGES, MOST_IMAGES = 16, 512
"""Bounds of the number of images where it is that of the held-out prompts."""


class Store(Protocol):
    """Where scores are saved as they arrive, so that an evaluation can resume. All processes share it."""

    def scores(self) -> dict[int, dict[str, float]]:
        """Returns row -> name -> score for the rows that are done."""
        ...

    def picture(self, row: int) -> Tensor:
        """Returns the `small` image [3, H, W] of a row below `NUM_SHOWN` that is done.

        Args:
            row: its index.
        """
        ...

    def keep_images(self, rows: Sequence[int], images: Tensor) -> None:
        """Saves images; each process calls it with its own, before `keep_scores`.

        Args:
            rows: R indices.
            images: [R, 3, H, W] in [0, 1].
        """
        ...

    def keep_scores(self, scores: dict[int, dict[str, float]]) -> None:
        """Saves the scores of rows that are done; only the main process calls it.

        Args:
            scores: row -> name -> score.
        """
        ...


def score(config: TrainConfig, policy: Policy, processes: Processes | None = None) -> Evaluation:
    """Evaluates a policy as a run with these settings does.

    Args:
        config: the settings.
        policy: the model.
        processes: those that share the work; None: this process alone.

    Returns:
        The evaluation, in every process.

    Raises:
        RewardError: in all processes, if a reward failed in one.
    """
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
        config: the prompts, their number, the noise and the steps; its rewards are ignored.
        policy: the model.
        measure: scores images.
        processes: those that share the work; None: this process alone.
        store: saves scores as they arrive, and has those of an earlier start; None: nothing is saved.

    Returns:
        The evaluation, in every process.

    Raises:
        RewardError: in all processes, if a reward failed in one; its sample is the row.
        NotFiniteError: if an image is infinite or NaN, in the process that drew it; the others raise a RewardError.
    """
    processes, own = processes or Processes(), config.evaluation
    table = config.grpo.table(policy) if own.eval_steps is None else _plain_table(policy, own.eval_steps)
    prompts, metadata = heldout(config)
    known = {} if store is None else store.scores()
    missing = [row for row in range(len(metadata)) if row not in known]
    pictures = {} if store is None else {row: store.picture(row) for row in known if row < NUM_SHOWN}
    limit = config.grpo.max_batch
    for piece in equal_pieces(len(missing), None if limit is None else limit * processes.count):
        rows = missing[piece]
        mine = _share(rows, processes)
        entries = [metadata[row] for row in mine]
        texts = [entry["prompt"] for entry in entries]
        with _failing_together(mine, metadata, processes):
            scale, size = config.grpo.guidance_scale, config.grpo.decode_batch
            images = sample_images(policy, texts, table, own.eval_seed, scale, limit, mine, entries, size)
            scores = measure(images, texts, entries)
            images = stills(images)
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
    """Returns the prompts with which a run with these settings evaluates.

    Args:
        config: the settings.

    Returns:
        The prompt set, and R entries from it, one per image.

    Raises:
        ValueError: if the prompts cannot be read.
    """
    task, own = config.task, config.evaluation
    prompts = get_prompts(task.prompts, task.eval_prompts, task.prompt_column)
    num_images = own.eval_images
    if num_images is None:
        num_images = min(max(len(prompts.everything()[1]), FEWEST_IMAGES), MOST_IMAGES)
    return prompts, prompts.heldout(num_images, own.eval_seed)


def _plain_table(policy: Policy, num_steps: int) -> StepTable:
    """The model's own schedule without noise."""
    return step_table(policy.sigmas(num_steps), NOISELESS)


def _share(rows: Sequence[int], processes: Processes) -> list[int]:
    """The rows of this process. All get the same number, for the same network calls; the last row may occur twice.

    A row gives the same image in every process, so it does not matter which result is kept.
    """
    rounds = -(-len(rows) // processes.count)
    places = (turn * processes.count + processes.index for turn in range(rounds))
    return [rows[min(place, len(rows) - 1)] for place in places]


@contextmanager
def _failing_together(rows: Sequence[int], metadata: Sequence[Entry], processes: Processes) -> Iterator[None]:
    """Raises a failure with the rows of one process in all of them, so that none waits for it."""
    error: RewardError | NotFiniteError | None = None
    row = -1
    try:
        yield
    except RewardError as failure:
        row = rows[failure.sample]
        error = RewardError(failure.name, row, failure.prompt, failure.reason)
    except NotFiniteError as failure:
        row, error = rows[0], failure
    failed = int(processes.max(torch.tensor(row)))
    if error is not None:
        raise error
    if failed >= 0:
        raise RewardError("of another process", failed, metadata[failed]["prompt"], "that process says why")


def _collected(part: Tensor, mine: Sequence[int], rows: Sequence[int], processes: Processes) -> Tensor:
    """[len(rows), ...] from the parts [R, ...] of all processes; `mine` are the rows of this part, which may repeat."""
    places = {row: place for place, row in enumerate(rows)}
    whole = torch.full((len(rows), *part.shape[1:]), -torch.inf, dtype=part.dtype)
    for row, value in zip(mine, part, strict=True):
        if row in places:
            whole[places[row]] = value
    return processes.max(whole)
