"""Encoded prompts, kept within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

CACHE_BYTES = 2 << 30
"""About a thousand prompts of SD3.5 in bf16 (205 tokens of 4096), half as many of FLUX (512 tokens)."""

Row = dict[str, Tensor]


class PromptCache:
    """Prompt -> its encoding. The least recently used ones go first when the bytes are used up."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._limit, self._size = limit, 0

    def get(self, prompt: str) -> Row | None:
        """The encoding, or None if it is not here (any more)."""
        if prompt in self._rows:
            self._rows.move_to_end(prompt)
        return self._rows.get(prompt)

    def put(self, prompt: str, row: Row) -> None:
        """Keeps an encoding that is not here yet."""
        self._rows[prompt] = row
        self._size += _num_bytes(row)
        while self._size > self._limit:
            self._size -= _num_bytes(self._rows.popitem(last=False)[1])


def _num_bytes(row: Row) -> int:
    return sum(tensor.nbytes for tensor in row.values())
