"""From images in [0, 1] to the inputs of image models and encoders, without leaving the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .resize import center_square

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def as_bytes(images: Tensor) -> Tensor:
    """Images as uint8, rounded to the nearest level; of the same shape and device.

    Args:
        images: of any shape, in [0, 1].
    """
    return images.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8)


def quantized(images: Tensor) -> Tensor:
    """The 256 levels of `as_bytes` back in [0, 1], float32: what a model sees if it reads an image file.

    Args:
        images: of any shape, in [0, 1].
    """
    return as_bytes(images).float() / 255


def normalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images - mean) / std, channel by channel.

    Args:
        images: [R, 3, H, W].
        mean: of the three channels.
        std: of the three channels.
    """
    centre, scale = (torch.tensor(x, device=images.device, dtype=images.dtype).view(3, 1, 1) for x in (mean, std))
    return (images - centre) / scale


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """CLIP's input, float32 [R, 3, size, size]: bicubic resize, centre crop, CLIP's normalisation.

    Args:
        images: [R, 3, H, W] in [0, 1].
        size: side of the input in pixels.
    """
    return normalized(center_square(as_bytes(images), size).float() / 255, CLIP_MEAN, CLIP_STD)
