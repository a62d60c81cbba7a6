"""Two evaluations of the same prompts and noise, image by image."""

from __future__ import annotations

from collections.abc import Sequence

from ..prompts.sets import Entry
from .intervals import Interval, task_intervals
from .result import Evaluation, Noise


def check_comparable(metadata: Sequence[Entry], noise: Noise, old: Evaluation) -> None:
    """ValueError unless an evaluation of these prompts from this noise shares both with `old`, image by image."""
    if len(metadata) != len(old.metadata):
        got = f"{len(metadata)} and {len(old.metadata)}"
        raise ValueError(f"compare: both evaluations must have as many images, got {got}")
    if noise != old.noise:
        raise ValueError(f"compare: both evaluations must start from the same noise, got {noise} and {old.noise}")
    for row, (ours, theirs) in enumerate(zip(metadata, old.metadata, strict=True)):
        if ours != theirs:
            got = f"{ours['prompt']!r} and {theirs['prompt']!r} at image {row}"
            raise ValueError(f"compare: both evaluations must have the same prompts with the same metadata, got {got}")


def paired_differences(new: Evaluation, old: Evaluation) -> dict[str, dict[str, Interval]]:
    """Task -> measure -> the mean of new - old over images that share prompt and noise, with a 95 % interval.

    Only where both start from one noise does a difference say what the policies differ by: prompts and noise that are
    hard for both then cancel.

    Raises:
        ValueError: naming what is not the same, or that they have no measure in common.
    """
    check_comparable(new.metadata, new.noise, old)
    shared = [name for name in new.measures if name in old.measures]
    if not shared:
        got = f"{', '.join(new.measures)} and {', '.join(old.measures)}"
        raise ValueError(f"compare: both evaluations must have a measure in common, got {got}")
    found = {
        name: task_intervals(new.measures[name] - old.measures[name], new.tags, new.tasks, new.prompt_keys)
        for name in shared
    }
    return {task: {name: found[name][task] for name in shared} for task in found[shared[0]]}
