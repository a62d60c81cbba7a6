"""The source images of prompts, for a reward that compares results with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..source_images import pixels, sources_of


def source_images(metadata: Sequence[dict[str, Any]], device: torch.device | str = "cpu") -> list[list[Tensor]]:
    """The images that prompts ask to edit, as a reward gets its images: in [0, 1].

    Args:
        metadata: of R prompts, as the reward got them.
        device: where to put them, such as that of the results.

    Returns:
        For each of R prompts its images, float32 [3, H, W], each of its file's size; an empty list if it has none.

    Raises:
        ValueError: if a file cannot be read.
    """
    return [[pixels(source).to(device).float() / 255 for source in sources_of(entry)] for entry in metadata]
