"""From images in [0, 1] to what image models and encoders take, without leaving the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def as_bytes(images: Tensor) -> Tensor:
    """uint8 of images in [0, 1], rounded to the nearest level; of the same shape and device."""
    return images.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8)


def quantized(images: Tensor) -> Tensor:
    """The 256 levels of `as_bytes` back in [0, 1], float32: what a model sees that is given an image file."""
    return as_bytes(images).float() / 255


def normalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images [R, 3, H, W] less `mean` over `std`, channel by channel."""
    mean, std = (torch.tensor(values, device=images.device, dtype=images.dtype).view(3, 1, 1) for values in (mean, std))
    return (images - mean) / std


def resized(images: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Images [R, 3, H, W] at another size, antialiased and rounded to 256 levels, as image libraries resize bytes."""
    images = quantized(images)
    if images.shape[-2:] == (height, width):
        return images
    return quantized(interpolate(images, (height, width), mode=mode, antialias=True, align_corners=False))


def center_square(images: Tensor, size: int) -> Tensor:
    """Images with their shorter side resized to `size` and the middle of the longer one kept, [R, 3, size, size]."""
    height, width = images.shape[-2:]
    if height <= width:
        height, width = size, size * width // height
    else:
        height, width = size * height // width, size
    images = resized(images, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """CLIP's input [R, 3, size, size], float32, of images [R, 3, H, W]: bicubic resize, middle square, CLIP's scale."""
    return normalized(center_square(images, size), CLIP_MEAN, CLIP_STD)
