"""A cache of encoded prompts, limited in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .layouts import Layout

CACHE_BYTES = 2 << 30
"""Holds about a thousand prompts of SD3.5 in bf16 (205 tokens of 4096), or half as many of FLUX (512 tokens)."""

Row = dict[str, Tensor]
"""The tensors of one prompt, without a leading dimension."""
Encoding = tuple[Row, "Layout"]
"""What a prompt brings to a call of the network, and what the call is like."""


class PromptCache:
    """Prompt, with its source images -> its encoding. At the limit, the least recently used encodings are dropped.

    Args:
        limit: bytes of all encodings together.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._rows: OrderedDict[Hashable, Encoding] = OrderedDict()
        self._limit, self._size = limit, 0

    def get(self, prompt: Hashable) -> Encoding | None:
        """The encoding, or None if it is not in the cache.

        Args:
            prompt: what tells it from others.
        """
        if prompt in self._rows:
            self._rows.move_to_end(prompt)
        return self._rows.get(prompt)

    def put(self, prompt: Hashable, encoding: Encoding) -> None:
        """Adds an encoding.

        Args:
            prompt: what tells it from others; it is not in the cache yet.
            encoding: of it.
        """
        self._rows[prompt] = encoding
        self._size += _num_bytes(encoding[0])
        while self._size > self._limit:
            self._size -= _num_bytes(self._rows.popitem(last=False)[1][0])


def _num_bytes(row: Row) -> int:
    return sum(tensor.nbytes for tensor in row.values())
