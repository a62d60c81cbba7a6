"""The exact judge of the embedded world of coloured shapes, as two rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tempflow_fast.shapes import checker

from .base import declared


@declared(0.0, 1.0)
def partial(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """The training reward, float32 [R]: half for a strict match, half partial credit; of images [R, 3, 24, 24]."""
    return checker.reward(images, prompts, metadata)


@declared(0.0, 1.0)
def strict(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """1 where an image is exactly what its metadata asks for, else 0: float32 [R] of images [R, 3, 24, 24]."""
    return checker.strict(images, metadata).float()
