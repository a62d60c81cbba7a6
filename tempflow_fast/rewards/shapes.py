"""The exact judge of the packaged model's coloured shapes, as two rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tempflow_fast.shapes import checker

from .base import declared


@declared(0.0, 1.0)
def partial(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """The training reward, float32 [R]: half for a strict match, half partial credit.

    Args:
        images: [R, 3, H, W] in [0, 1], of the packaged model's size.
        prompts: R texts.
        metadata: R entries of the prompt set.
    """
    return checker.reward(images, prompts, metadata)


@declared(0.0, 1.0)
def strict(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """1 if an image is exactly what its metadata asks for, else 0: float32 [R].

    Args:
        images: [R, 3, H, W] in [0, 1], of the packaged model's size.
        prompts: R texts.
        metadata: R entries of the prompt set.
    """
    return checker.strict(images, metadata).float()
