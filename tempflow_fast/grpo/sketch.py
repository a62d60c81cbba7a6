"""Gradients -> short vectors with the same inner products on average, where many gradients would not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import integer, require

SKETCH_SIZE = 1 << 18
"""Elements kept of a gradient; inner products of sketches differ by 0.3 % of the product of the norms."""
CHUNK = 1 << 22
"""Elements whose signs are drawn at once."""


class Sketch:
    """A fixed random projection: random signs, then sums of every `size`-th element (a count sketch).

    For two gradients g and h, the expected inner product of their sketches over the random signs is exactly g . h; its
    standard deviation is at most sqrt(2 / size) |g| |h|. A gradient of at most `size` elements is kept as it is. The
    signs depend only on the position in the gradient, so sketches of separate processes and runs are comparable.

    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002.

    Args:
        num_elements: length of the gradients.
        size: length of the sketches; None: gradients are kept whole.
    """

    def __init__(self, num_elements: int, size: int | None = None) -> None:
        if size is not None:
            require(integer("Sketch", "size", size) >= 1, "Sketch", "size", ">= 1 or None", size)
        self.num_elements = num_elements
        self.size = num_elements if size is None else min(size, num_elements)
        self._kept: Tensor | None = None

    def __call__(self, gradients: Iterable[Tensor]) -> Tensor:
        """The sketch [size], float32 on the device of the gradient. The sums have a fixed order there.

        Args:
            gradients: its parts, in the order of the parameters.
        """
        parts = (part.detach().flatten() for part in gradients)
        if self.size == self.num_elements:
            return torch.cat([part.float() for part in parts])
        out, start = torch.zeros(()), 0
        for part in parts:
            for piece in part.split(CHUNK):
                before, end = start % self.size, start + len(piece)
                signed = piece.float() * self._signs(start, len(piece), piece.device)
                out = out.to(piece.device) + pad(signed, (before, -end % self.size)).view(-1, self.size).sum(0)
                start = end
        return out

    def _signs(self, start: int, count: int, device: torch.device) -> Tensor:
        """`_signs`, kept from one gradient to the next where these are short."""
        if self.num_elements > CHUNK:
            return _signs(start, count, device)
        if self._kept is None or self._kept.device != device:
            self._kept = _signs(0, self.num_elements, device).to(torch.int8)
        return self._kept[start : start + count]


def _signs(start: int, count: int, device: torch.device | None = None) -> Tensor:
    """+1 or -1 for the elements from `start` on: a hash of each position (the finaliser of SplitMix64)."""
    x = torch.arange(start, start + count, dtype=torch.int64, device=device) + 0x1E3779B97F4A7C15
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shifted(x, shift)) * factor
    x = x ^ _shifted(x, 31)
    return 1.0 - 2.0 * (x & 1).float()


def _shifted(x: Tensor, shift: int) -> Tensor:
    """A logical shift to the right of int64."""
    return (x >> shift) & ((1 << (64 - shift)) - 1)
