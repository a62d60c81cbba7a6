"""How rows are split into network calls."""

from __future__ import annotations

import pytest

from tempflow_fast.batching import bucket, equal_pieces, rounded_counts


@pytest.mark.parametrize(
    ("counts", "limit", "rounded"),
    [
        ([4, 14, 13, 16], 4, {4: 4, 13: 13, 14: 14, 16: 16}),
        ([1, 2, 3, 4, 5], 3, {1: 2, 2: 2, 3: 4, 4: 4, 5: 5}),
        ([7, 9], 1, {7: 9, 9: 9}),
    ],
)
def test_rounded_counts(counts, limit, rounded):
    assert rounded_counts(counts, limit) == rounded


@pytest.mark.parametrize(
    ("num_rows", "limit", "lengths"), [(0, 4, []), (0, None, []), (5, None, [5]), (9, 4, [3, 3, 3]), (10, 4, [3, 3, 4])]
)
def test_equal_pieces(num_rows, limit, lengths):
    pieces = equal_pieces(num_rows, limit)
    assert [piece.stop - piece.start for piece in pieces] == lengths
    assert [row for piece in pieces for row in range(num_rows)[piece]] == list(range(num_rows))


def test_pieces_may_outnumber_the_rows():
    assert [piece.stop - piece.start for piece in equal_pieces(2, 1, at_least=4)] == [0, 1, 0, 1]
    assert equal_pieces(5, 2, at_least=2) == equal_pieces(5, 2)
    assert [piece.stop - piece.start for piece in equal_pieces(0, None, at_least=2)] == [0, 0]


def test_buckets_add_at_most_a_quarter_and_are_few():
    rounded = [bucket(count) for count in range(1, 1025)]
    assert rounded[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 12, 12]
    assert all(count <= size <= 1.25 * count for count, size in enumerate(rounded, start=1))
    assert len(set(rounded)) == 8 + 4 * 7
