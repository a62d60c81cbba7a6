"""A cache of encoded prompts, limited in bytes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

CACHE_BYTES = 2 << 30
"""Holds about a thousand prompts of SD3.5 in bf16 (205 tokens of 4096), or half as many of FLUX (512 tokens)."""

Row = dict[str, Tensor]
"""The tensors of one prompt, without a leading dimension."""


class PromptCache:
    """Prompt -> its encoding. When the limit is reached, the least recently used encodings are dropped.

    Args:
        limit: bytes of all encodings together.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._limit, self._size = limit, 0

    def get(self, prompt: str) -> Row | None:
        """The encoding, or None if it is not in the cache.

        Args:
            prompt: the text.
        """
        if prompt in self._rows:
            self._rows.move_to_end(prompt)
        return self._rows.get(prompt)

    def put(self, prompt: str, row: Row) -> None:
        """Adds an encoding.

        Args:
            prompt: the text, which is not in the cache yet.
            row: its encoding.
        """
        self._rows[prompt] = row
        self._size += _num_bytes(row)
        while self._size > self._limit:
            self._size -= _num_bytes(self._rows.popitem(last=False)[1])


def _num_bytes(row: Row) -> int:
    return sum(tensor.nbytes for tensor in row.values())
