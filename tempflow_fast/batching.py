"""Cutting rows into network calls, and dealing trajectories to processes."""

from __future__ import annotations

from collections.abc import Iterable


def equal_pieces(num_rows: int, limit: int | None, at_least: int = 0) -> list[slice]:
    """The fewest slices of 0..num_rows-1 with at most `limit` rows each (None: no limit), their lengths within one.

    Equal lengths waste no call on a short remainder, and calls of one row take other matrix kernels than larger ones.
    `at_least` asks for more slices than needed, some of them then empty where the rows are fewer.
    """
    num_pieces = max(at_least, min(num_rows, 1) if limit is None else -(-num_rows // limit))
    return [slice(num_rows * piece // num_pieces, num_rows * (piece + 1) // num_pieces) for piece in range(num_pieces)]


def rounded_counts(row_counts: Iterable[int], limit: int) -> dict[int, int]:
    """Row count -> the count to pad it to, so that at most `limit` different ones are left; none is changed in vain.

    Counts rise to multiples of the smallest number that is large enough, but not above the largest count itself.
    """
    counts = sorted(set(row_counts))
    unit = 1
    while True:
        rounded = {count: min(-(-count // unit) * unit, counts[-1]) for count in counts}
        if len(set(rounded.values())) <= limit:
            return rounded
        unit += 1


def deal(num_trajectories: int, num_updates: int, num_processes: int) -> list[list[int]]:
    """The global ids of each process's trajectories, rising; whole numbers decide, nothing has to divide anything.

    Trajectory n belongs to update n % num_updates. The trajectories are dealt out like cards, update by update without
    a fresh start, so both the shares of an update and the shares of the iteration differ by one at most.
    """
    by_update = [n for update in range(num_updates) for n in range(update, num_trajectories, num_updates)]
    return [sorted(by_update[process::num_processes]) for process in range(num_processes)]


def padded(shares: list[list[int]], process: int) -> list[int]:
    """The trajectories that a process rolls out: its share, and trajectory 0 once more where others have one more.

    Networks that are split over processes work only if all of them make the same calls, and whoever has less to do
    would wait anyway.
    """
    return shares[process] + [0] * (max(map(len, shares)) - len(shares[process]))
