"""Resizing images exactly as Pillow does, on any device.

Image models were trained and published with Pillow's resizing. Its resampling is a sum over neighbours with weights of
22 binary places, along rows and then along columns, each rounded to a byte. So it is two matrix products, whose sums of
integers below 2^31 are exact in float64. (If one side grows and the other shrinks, Pillow may do columns first.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

PRECISION = 2.0**22
"""Scale of Pillow's integer weights."""


def _bilinear(distance: float) -> float:
    return max(1 - abs(distance), 0.0)


def _bicubic(distance: float, a: float = -0.5) -> float:
    """Keys' cubic convolution kernel (1981), with Pillow's parameter."""
    x = abs(distance)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}
"""Name -> kernel, and its radius in pixels."""


def resized(levels: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Resizes images, to uint8 [..., height, width].

    Args:
        levels: uint8 [..., H, W].
        height: of the result in pixels.
        width: of the result in pixels.
        mode: a name of `FILTERS`.
    """
    return _rows(_rows(levels.mT, width, range(width), mode).mT, height, range(height), mode)


def center_square(levels: Tensor, size: int) -> Tensor:
    """Resizes the shorter side to `size` and crops the centre, to uint8 [..., size, size].

    Only the centre of the longer side is computed: that of a narrow strip would be thousands of pixels long.

    Args:
        levels: uint8 [..., H, W].
        size: side of the result in pixels.
    """
    height, width = levels.shape[-2:]
    if height <= width:
        height, width = size, size * width // height
    else:
        height, width = size * height // width, size
    top, left = (height - size) // 2, (width - size) // 2
    levels = _rows(levels.mT, width, range(left, left + size)).mT
    return _rows(levels, height, range(top, top + size))


def _rows(levels: Tensor, height: int, wanted: range, mode: str = "bicubic") -> Tensor:
    """Images [..., H, W] at another height, of which the `wanted` rows are kept."""
    if levels.shape[-2] == height:
        return levels[..., wanted.start : wanted.stop, :]
    weights = _weights(levels.shape[-2], height, wanted, mode).to(levels.device)
    return _bytes(weights @ levels.double())


def _bytes(sums: Tensor) -> Tensor:
    return ((sums + PRECISION / 2) / PRECISION).floor().clamp(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=64)
def _weights(before: int, after: int, wanted: range, mode: str) -> Tensor:
    """Weight of each of `before` pixels in each wanted one of `after` pixels, times 2^22: float64 [wanted, before]."""
    kernel, reach = FILTERS[mode]
    scale = before / after
    stretch = max(scale, 1.0)
    rows = torch.zeros(len(wanted), before, dtype=torch.float64)
    for row, place in zip(rows, wanted, strict=True):
        center = (place + 0.5) * scale
        first = max(int(center - reach * stretch + 0.5), 0)
        last = min(int(center + reach * stretch + 0.5), before)
        taken = [kernel((pixel - center + 0.5) / stretch) for pixel in range(first, last)]
        total = sum(taken)
        whole = [math.copysign(math.floor(abs(weight / total) * PRECISION + 0.5), weight) for weight in taken]
        row[first:last] = torch.tensor(whole, dtype=torch.float64)
    return rows
