"""Trajectories are dealt evenly to processes and updates, and only pairs with a signal are trained."""

import pytest
import torch

from tempflow_fast.grpo.branches import Branches
from tempflow_fast.grpo.shares import Shares
from tempflow_fast.grpo.update import training_plan


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


def pairs_of_calls(has_signal, num_processes, number, micro_batch=None):
    """The pairs of every process's training calls, by their trajectory and step."""
    branches, parts = Branches.everywhere(4, {0: 3, 1: 3}), []
    for index in range(num_processes):
        shares = Shares(4, 2, num_processes, index)
        calls = training_plan(has_signal.flatten(), branches, shares, number, micro_batch)
        own = branches.of(shares.own)
        parts.append(
            [[(int(own.trajectories[i]), int(own.steps[i])) for i in call.pairs[: len(call)]] for call in calls]
        )
    return parts


def test_pairs_without_signal_are_left_out():
    has_signal = torch.tensor([[False, False], [True, False], [False, True], [False, True]])
    assert [Shares(4, 2, 2, index).own for index in range(2)] == [[0, 1], [2, 3]]
    assert pairs_of_calls(has_signal, 2, 0) == [[[]], [[(0, 1)]]]
    assert pairs_of_calls(has_signal, 2, 1) == [[[(1, 0)]], [[(1, 1)]]]
    assert pairs_of_calls(torch.zeros(4, 2, dtype=torch.bool), 2, 1) == [[], []]


def test_a_training_call_has_pairs_of_one_kind_in_every_process():
    """Trajectory 0 has two kinds of pairs, trajectory 1 one: its process makes a call for the other kind as well."""
    trajectories, steps = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    branches = Branches(2, trajectories, steps, torch.tensor([2, 3, 3, 3]), torch.ones(4, dtype=torch.float64))
    plans = [training_plan(torch.ones(4) > 0, branches, Shares(2, 1, 2, index), 0, None) for index in range(2)]
    assert [[len(call) for call in plan] for plan in plans] == [[1, 1], [0, 2]]
