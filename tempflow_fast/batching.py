"""Cutting rows into network calls."""

from __future__ import annotations


def equal_pieces(num_rows: int, limit: int | None) -> list[slice]:
    """The fewest slices of 0..num_rows-1 with at most `limit` rows each (None: no limit), their lengths within one.

    Equal lengths waste no call on a short remainder, and calls of one row take other matrix kernels than larger ones.
    """
    num_pieces = min(num_rows, 1) if limit is None else -(-num_rows // limit)
    return [slice(num_rows * piece // num_pieces, num_rows * (piece + 1) // num_pieces) for piece in range(num_pieces)]
