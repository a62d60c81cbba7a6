"""Cutting rows into network calls."""

from __future__ import annotations


def equal_pieces(num_rows: int, limit: int | None) -> list[slice]:
    """The fewest slices of 0..num_rows-1 with at most `limit` rows each (None: no limit), their lengths within one.

    Equal lengths waste no call on a short remainder, and calls of one row take other matrix kernels than larger ones.
    """
    num_pieces = 1 if limit is None else -(-num_rows // limit)
    bounds = [num_rows * piece // max(num_pieces, 1) for piece in range(num_pieces + 1)]
    return [slice(start, stop) for start, stop in zip(bounds, bounds[1:]) if stop > start]
