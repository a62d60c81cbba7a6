"""Cutting rows into network calls."""

from __future__ import annotations

from collections.abc import Iterable


def equal_pieces(num_rows: int, limit: int | None, at_least: int = 0) -> list[slice]:
    """The fewest slices of 0..num_rows-1 within a limit; their lengths differ by at most one.

    Equal lengths waste no call on a short remainder, and calls of one row use other matrix kernels than larger ones.

    Args:
        num_rows: how many rows there are.
        limit: the most rows in a slice; None: no limit.
        at_least: the least number of slices; if there are fewer rows, some slices are empty.
    """
    num_pieces = max(at_least, min(num_rows, 1) if limit is None else -(-num_rows // limit))
    return [slice(num_rows * piece // num_pieces, num_rows * (piece + 1) // num_pieces) for piece in range(num_pieces)]


def rounded_counts(row_counts: Iterable[int], limit: int) -> dict[int, int]:
    """Rounds row counts up so that at most `limit` different ones remain.

    Counts are rounded up to multiples of the smallest number that suffices, but not beyond the largest count.

    Args:
        row_counts: the counts of rows of the calls.
        limit: the largest number of different counts.

    Returns:
        Row count -> the count to pad it to.
    """
    counts = sorted(set(row_counts))
    unit = 1
    while True:
        rounded = {count: min(-(-count // unit) * unit, counts[-1]) for count in counts}
        if len(set(rounded.values())) <= limit:
            return rounded
        unit += 1


def bucket(num_rows: int) -> int:
    """Rounds a row count up to one of few: 1 to 8, then four counts from each power of two to the next.

    It depends on nothing else, so that calls whose row counts differ from iteration to iteration have few shapes; at
    most a quarter of the rows is added.

    Args:
        num_rows: at least 1.
    """
    unit = 1 << max(num_rows.bit_length() - 3, 0)
    return -(-num_rows // unit) * unit
