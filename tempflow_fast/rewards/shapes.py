"""The exact judge of the packaged model's coloured shapes, as two rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tempflow_fast.shapes import checker
from tempflow_fast.shapes.world import COLORS, SHAPES

from ..errors import require
from ..geneval import NUMBERS, check_entry
from .base import declared


def _check(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
    """Refuses metadata that the judge does not know; the prompts play no part."""
    for entry in metadata:
        check_entry("shapes", entry, SHAPES, COLORS, max(NUMBERS) + 1)
        counts = [item["count"] for item in entry["include"]]
        fits = len(counts) == 1 or counts == [1, 1]  # what the judge can assign to the objects of an image
        require(fits, "shapes", "include", "one shape and its number, or one each of two", entry["include"])


@declared(0.0, 1.0, _check)
def partial(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """The training reward, float32 [R]: half for a strict match, half partial credit.

    Args:
        images: [R, 3, H, W] in [0, 1], of the packaged model's size.
        prompts: R texts.
        metadata: R entries of the prompt set.

    Raises:
        ValueError: if the metadata ask for anything but one or more of a shape, or one each of two.
    """
    _check(prompts, metadata)
    return checker.reward(images, prompts, metadata)


@declared(0.0, 1.0, _check)
def strict(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """1 if an image is exactly what its metadata asks for, else 0: float32 [R].

    Args:
        images: [R, 3, H, W] in [0, 1], of the packaged model's size.
        prompts: R texts.
        metadata: R entries of the prompt set.

    Raises:
        ValueError: as `partial`.
    """
    _check(prompts, metadata)
    return checker.strict(images, metadata).float()
