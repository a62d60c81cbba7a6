"""What tells of reward hacking in the images themselves: groups that grow alike, colours and contrast that run away."""

from __future__ import annotations

import torch
from torch import Tensor

DIVERSITY = "image_diversity"
STATISTICS = (DIVERSITY, "image_saturation", "image_clipped", "image_contrast")
HALF_LEVEL = 0.5 / 255
LUMA = (0.2126, 0.7152, 0.0722)
"""Of red, green and blue in brightness (ITU-R BT.709)."""


def image_statistics(images: Tensor) -> dict[str, Tensor]:
    """Means over images [G, K, 3, H, W] in [0, 1], as scalars on their device; G groups of K images.

    Returns:
        `STATISTICS` by name; `image_diversity` only for K >= 2.

    Raises:
        ValueError: for images of another shape.
    """
    if images.dim() != 5 or images.shape[2] != 3 or not images.numel():
        raise ValueError(f"image_statistics: images must be [G, K, 3, H, W], got {list(images.shape)}")
    flat = images.flatten(0, 1)
    measures = {"saturation": saturation(flat), "clipped": clipped_share(flat), "contrast": contrast(flat)}
    if images.shape[1] > 1:
        measures = {"diversity": diversity(images), **measures}
    return {f"image_{name}": values.mean() for name, values in measures.items()}


def diversity(images: Tensor) -> Tensor:
    """How far two images of a group [G, K, 3, H, W] are apart, [G]: root mean square over pairs and pixels.

    0 where all are equal. Training that finds one image for every noise drives it there.
    """
    if images.shape[1] < 2:
        raise ValueError(f"diversity: images must have groups of two or more, got {images.shape[1]}")
    # Over all pairs, the mean squared distance is twice the variance, with K - 1 in its denominator.
    num_images = images.shape[1]
    spread = _mean_square_deviation(images.float(), dim=1).flatten(1).mean(1)
    return (2 * num_images / (num_images - 1) * spread).sqrt()


def saturation(images: Tensor) -> Tensor:
    """How colourful images [R, 3, H, W] are, [R]: the mean of HSV's saturation; 0 is grey, 1 pure colour."""
    highest, lowest = images.float().amax(1), images.float().amin(1)
    return ((highest - lowest) / highest.clamp(min=HALF_LEVEL)).clamp(max=1).flatten(1).mean(1)


def clipped_share(images: Tensor) -> Tensor:
    """The share of values of images [R, 3, H, W] that are black or full, [R]."""
    images = images.float()
    return ((images <= HALF_LEVEL) | (images >= 1 - HALF_LEVEL)).float().flatten(1).mean(1)


def contrast(images: Tensor) -> Tensor:
    """The standard deviation of brightness over the pixels of images [R, 3, H, W], [R]."""
    weights = torch.tensor(LUMA, device=images.device).view(3, 1, 1)
    return _mean_square_deviation((images.float() * weights).sum(1).flatten(1), dim=1).sqrt()


def _mean_square_deviation(values: Tensor, dim: int) -> Tensor:
    """The population variance; `Tensor.var` takes twenty times as long on a CPU."""
    return (values - values.mean(dim, keepdim=True)).square().mean(dim)
