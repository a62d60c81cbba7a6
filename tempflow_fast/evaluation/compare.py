"""Two evaluations of the same prompts and noise, image by image."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import require
from ..prompts.sets import Entry
from .intervals import Interval
from .result import Evaluation, Noise


def check_comparable(metadata: Sequence[Entry], noise: Noise, old: Evaluation) -> None:
    """Checks that an evaluation can be compared with another one image by image, before or after it is made.

    Args:
        metadata: R prompts of the evaluation.
        noise: its noise.
        old: the other evaluation.

    Raises:
        ValueError: naming what differs.
    """
    name, other = "check_comparable", "the other evaluation"
    expected = f"{len(old.metadata)} entries, as in {other}"
    require(len(metadata) == len(old.metadata), name, "metadata", expected, len(metadata))
    require(noise == old.noise, name, "noise", f"the noise of {other}, {old.noise}", noise)
    for row, (ours, theirs) in enumerate(zip(metadata, old.metadata, strict=True)):
        expected = f"the same prompts with the same metadata as in {other}"
        got = f"{ours['prompt']!r} where it has {theirs['prompt']!r}, at image {row}"
        require(ours == theirs, name, "metadata", expected, got)


def paired_differences(new: Evaluation, old: Evaluation) -> dict[str, dict[str, Interval]]:
    """Computes the mean of new - old over images that share prompt and noise, with a 95 % interval.

    Because prompts and noise are shared, what is hard for both policies cancels.

    Args:
        new: one evaluation.
        old: the other.

    Returns:
        Task -> measure -> interval.

    Raises:
        ValueError: naming what is not the same, or if they have no measure in common.
    """
    check_comparable(new.metadata, new.noise, old)
    shared = [name for name in new.measures if name in old.measures]
    expected = f"an evaluation that shares a measure with old, which has {', '.join(old.measures)}"
    require(bool(shared), "paired_differences", "new", expected, ", ".join(new.measures))
    return new.intervals_of({name: new.measures[name] - old.measures[name] for name in shared})
