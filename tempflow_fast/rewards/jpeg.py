"""How well an image compresses, or how badly: rewards that need no model, and show that training works at all.

From DDPO (arXiv 2305.13301): size as JPEG of quality 95; /500 as in the public scripts of Flow-GRPO.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import declared
from .pixels import as_bytes

QUALITY = 95


@declared(0.0, math.inf)
def incompressibility(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """Kilobytes (1000 bytes) of each of images [R, 3, H, W] as a JPEG file, float64 [R]."""
    return torch.tensor([len(jpeg(image)) / 1000 for image in as_bytes(images).cpu()], dtype=torch.float64)


@declared(-math.inf, 0.0)
def compressibility(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """Minus the size as a JPEG file in units of 500 kilobytes, float64 [R]."""
    return -incompressibility(images, prompts, metadata) / 500


def jpeg(image: Tensor, quality: int = QUALITY) -> bytes:
    """The JPEG file of a uint8 image [3, H, W] on the host."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
