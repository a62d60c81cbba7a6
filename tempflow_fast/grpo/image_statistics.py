"""What tells of reward hacking in the images themselves: groups that grow alike, colours and contrast that run away."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import require
from ..processes import Processes
from .branches import Branches

DIVERSITY = "image_diversity"
STATISTICS = (DIVERSITY, "image_saturation", "image_clipped", "image_contrast")
HALF_LEVEL = 0.5 / 255
LUMA = (0.2126, 0.7152, 0.0722)
"""Of red, green and blue in brightness (ITU-R BT.709)."""


class RunningStatistics:
    """The statistics of images that come in pieces, without keeping the images of finished groups.

    Args:
        branches: of all processes. The branches of a pair must follow one another.
        device: of the images.
    """

    def __init__(self, branches: Branches, device: torch.device) -> None:
        self._branches = branches
        num_groups = int((branches.counts > 1).sum())
        self._shares = dict.fromkeys(STATISTICS[1:], 1 / branches.num_rows)  # of an image, or of a group
        if num_groups:
            self._shares = {DIVERSITY: 1 / num_groups, **self._shares}
        self._sums = {name: torch.zeros((), device=device) for name in self._shares}
        self._open: tuple[Tensor, int] | None = None  # images and pair of a group that is not complete

    def add(self, images: Tensor, rows: Tensor) -> None:
        """Takes images.

        Args:
            images: [n, 3, H, W] or [n, F, 3, H, W].
            rows: int64 [n] on the host, their branches.
        """
        if self._open is not None:
            rest = int((self._branches.pair_of_row[rows] == self._open[1]).sum())
            self._add_group(torch.cat([self._open[0], images[:rest]]), self._open[1])
            images, rows = images[rest:], rows[rest:]
        pairs, counts = self._branches.pair_of_row[rows].unique_consecutive(return_counts=True)
        for pair, group in zip(pairs.tolist(), images.split(counts.tolist()), strict=True):
            self._add_group(group, pair)

    def _add_group(self, images: Tensor, pair: int) -> None:
        """Takes a group; one that is not complete is kept for the next piece."""
        self._open = None
        if len(images) < self._branches.counts[pair]:
            self._open = images.clone(), pair  # a view would keep the whole piece
            return
        for name, mean in image_statistics(images[None]).items():
            self._sums[name] += mean * (self._shares[name] * (1 if name == DIVERSITY else len(images)))

    def totals(self, processes: Processes) -> dict[str, Tensor]:
        """The statistics of all images of all processes, of which this one has seen a share.

        Args:
            processes: who has the others.
        """
        return dict(zip(self._sums, processes.sum(torch.stack(list(self._sums.values()))), strict=True))


def image_statistics(images: Tensor) -> dict[str, Tensor]:
    """Means over images [G, K, 3, H, W] or videos [G, K, F, 3, H, W], as scalars on their device; G groups of K.

    Returns:
        `STATISTICS` by name; `image_diversity` only for K >= 2.

    Raises:
        ValueError: for images of another shape.
    """
    fits = images.dim() in (5, 6) and images.shape[-3] == 3 and images.numel() > 0
    require(fits, "image_statistics", "images", "[G, K, 3, H, W] or [G, K, F, 3, H, W]", list(images.shape))
    flat = images.flatten(0, 1)
    measures = {"saturation": saturation(flat), "clipped": clipped_share(flat), "contrast": contrast(flat)}
    if images.shape[1] > 1:
        measures = {"diversity": diversity(images), **measures}
    return {f"image_{name}": values.mean() for name, values in measures.items()}


def diversity(images: Tensor) -> Tensor:
    """How far two images or videos of a group [G, K, ...] are apart, [G]: root mean square over pairs and pixels.

    0 where all are equal. Training that finds one image for every noise drives it there.
    """
    require(images.shape[1] >= 2, "diversity", "images", "groups of two or more", images.shape[1])
    # Over all pairs, the mean squared distance is twice the variance, with K - 1 in its denominator.
    num_images = images.shape[1]
    spread = _mean_square_deviation(images.float(), dim=1).flatten(1).mean(1)
    return (2 * num_images / (num_images - 1) * spread).sqrt()


def saturation(images: Tensor) -> Tensor:
    """How colourful images [R, ..., 3, H, W] are, [R]: the mean of HSV's saturation; 0 is grey, 1 pure colour."""
    highest, lowest = images.float().amax(-3), images.float().amin(-3)
    return ((highest - lowest) / highest.clamp(min=HALF_LEVEL)).clamp(max=1).flatten(1).mean(1)


def clipped_share(images: Tensor) -> Tensor:
    """The share of values of images [R, ..., 3, H, W] that are black or full, [R]."""
    images = images.float()
    return ((images <= HALF_LEVEL) | (images >= 1 - HALF_LEVEL)).float().flatten(1).mean(1)


def contrast(images: Tensor) -> Tensor:
    """The standard deviation of brightness over the pixels of images [R, ..., 3, H, W], [R]."""
    red, green, blue = images.float().unbind(-3)  # a tensor of the weights would be a copy from the host, which waits
    brightness = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return _mean_square_deviation(brightness.flatten(1), dim=1).sqrt()


def _mean_square_deviation(values: Tensor, dim: int) -> Tensor:
    """The population variance; `Tensor.var` takes twenty times as long on a CPU."""
    return (values - values.mean(dim, keepdim=True)).square().mean(dim)
