"""The strict side of the shapes checker as a reward, for evaluation; its `reward` is one as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tempflow_fast.shapes import checker


def strict(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """1 where an image is exactly what its metadata asks for, else 0: float32 [R] of images [R, 3, 24, 24]."""
    return checker.strict(images, metadata).float()
