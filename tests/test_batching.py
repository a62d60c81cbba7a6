"""How rows are cut into network calls."""

from __future__ import annotations

import pytest

from tempflow_fast.batching import rounded_counts


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
