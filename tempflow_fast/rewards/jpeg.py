"""How well or how badly an image compresses: rewards that need no model, and show that training works at all.

From DDPO (arXiv 2305.13301): the size as a JPEG file of quality 95; divided by 500 as in Flow-GRPO's public scripts.
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


@declared(0.0, math.inf)  # the lowest and highest possible score
def incompressibility(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """The size of each image as a JPEG file in kilobytes (1000 bytes), float64 [R].

    Args:
        images: [R, 3, H, W] in [0, 1], on any device.
        prompts: R texts.
        metadata: R entries of the prompt set.
    """
    return torch.tensor([len(jpeg(image)) / 1000 for image in as_bytes(images).cpu()], dtype=torch.float64)


@declared(-math.inf, 0.0)
def compressibility(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """Minus the size of each image as a JPEG file, in units of 500 kilobytes, float64 [R].

    Args:
        images: [R, 3, H, W] in [0, 1], on any device.
        prompts: R texts.
        metadata: R entries of the prompt set.
    """
    return -incompressibility(images, prompts, metadata) / 500


def jpeg(image: Tensor, quality: int = QUALITY) -> bytes:
    """An image as a JPEG file.

    Args:
        image: uint8 [3, H, W] on the host.
        quality: of the JPEG format, 1 to 95.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
