"""Trajectories are dealt evenly to processes and updates, and only pairs with a signal are trained."""

import pytest
import torch

from tempflow_fast.grpo.shares import Shares
from tempflow_fast.grpo.update import signal_pairs


@pytest.mark.parametrize("num_trajectories", [1, 2, 7, 24])
@pytest.mark.parametrize("num_updates", [1, 2, 3])
@pytest.mark.parametrize("num_processes", [1, 2, 5, 8])
def test_shares_are_even_in_every_update(num_trajectories, num_updates, num_processes):
    shares = [Shares(num_trajectories, num_updates, num_processes, index) for index in range(num_processes)]
    assert sorted(n for share in shares for n in share.own) == list(range(num_trajectories))
    assert all(share.own == sorted(share.own) for share in shares)
    for update in (None, *range(num_updates)):
        lengths = [sum(update in (None, n % num_updates) for n in share.own) for share in shares]
        assert max(lengths) - min(lengths) <= 1
    most = -(-num_trajectories // num_processes)
    for share in shares:
        assert share.carried[: len(share.own)] == share.own
        assert len(share.carried) == most


def test_pairs_without_signal_are_left_out():
    has_signal = torch.tensor([[False, False], [True, False], [False, True], [False, True]])
    both = [Shares(4, 2, 2, index) for index in range(2)]
    assert both[0].by_process == [[0, 1], [2, 3]]
    assert signal_pairs(has_signal, both[0], 0) == signal_pairs(has_signal, both[1], 0) == [[], [(0, 1)]]
    assert signal_pairs(has_signal, both[0], 1) == [[(1, 0)], [(1, 1)]]
    assert signal_pairs(torch.zeros(4, 2, dtype=torch.bool), both[0], 1) == [[], []]
