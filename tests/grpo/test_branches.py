"""The list of branches: its order, its views, and parts of it; rollouts, advantages and updates of ragged lists."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.grpo.advantages import group_advantages, group_spreads
from tempflow_fast.grpo.branches import Branches, same_size
from tempflow_fast.grpo.update import update

RAGGED = [(0, 1, 2), (1, 0, 3), (1, 1, 1), (1, 3, 2), (2, 2, 4)]
"""(trajectory, step, K)."""


def listed(entries, num_trajectories=3, weights=None) -> Branches:
    columns = torch.tensor(entries).T
    weights = torch.ones(len(entries)) if weights is None else torch.tensor(weights)
    return Branches(num_trajectories, *columns, weights.double())


def start(policy, num=3):
    noise = torch.randn(num, *policy.latent_shape, dtype=policy.dtype, generator=torch.Generator().manual_seed(1))
    return policy.encode(PROMPTS[:num]), noise


def test_a_list_in_its_order():
    branches = listed(RAGGED)
    assert (branches.num_pairs, branches.num_rows) == (5, 12)
    assert branches.first_rows.tolist() == [0, 2, 5, 6, 8]
    assert branches.pair_of_row.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 4, 4]
    assert branches.last_steps.tolist() == [1, 3, 2]
    assert branches.pairs_at(1).tolist() == [0, 2, -1]
    assert branches.rows_of([2, 0, 2]).tolist() == [8, 9, 10, 11, 0, 1, 8, 9, 10, 11]
    part = branches.of([1, 0, 1])
    assert part.trajectories.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert part.counts.tolist() == [3, 1, 2, 2, 3, 1, 2]
    assert branches.shape is branches.common_steps is None
    assert sorted(kind.nonzero().flatten().tolist() for kind in branches.kinds) == [[0, 3], [1], [2], [4]]


def test_a_list_that_is_the_same_for_all_is_dense():
    branches = Branches.everywhere(2, {3: 2, 0: 2, 1: 0})
    assert branches.shape == (2, 2, 2)
    assert branches.steps.tolist() == [0, 3, 0, 3]
    assert branches.dense(torch.arange(8)).tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    table = Branches.everywhere(2, {0: 2, 1: 3})
    assert table.common_steps == (0, 1)
    assert table.dense_pairs(torch.arange(4)).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="dense: branches must be the same steps and the same K"):
        table.dense(torch.arange(10))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(0, 1, 2), (3, 0, 1)], r"trajectories must be in 0..2, got 0..3"),
        ([(0, 1, 0)], "counts must be >= 1, got 0"),
        ([(0, -1, 2)], "steps must be not negative, got -1"),
        ([(0, 1, 2), (0, 1, 2)], "pairs must be distinct and ascending"),
        ([(1, 0, 2), (0, 1, 2)], "pairs must be distinct and ascending"),
    ],
)
def test_errors_name_the_argument(entries, message):
    with pytest.raises(ValueError, match=f"Branches: {message}"):
        listed(entries)


def test_groups_of_equal_size_are_stacked():
    values, labels = torch.arange(7.0), torch.tensor([2, 0, 2, 1, 0, 1, 1])
    stacks = {tuple(rows.shape): (rows.tolist(), values.tolist()) for rows, values in same_size(values, labels)}
    assert stacks == {(2, 2): ([[1, 4], [0, 2]], [[1, 4], [0, 2]]), (1, 3): ([[3, 5, 6]], [[3, 5, 6]])}


@pytest.mark.parametrize(("max_batch", "guidance_scale"), [(None, 1.0), (3, 2.5)])
def test_a_branch_does_not_depend_on_which_others_exist(max_batch, guidance_scale):
    """Every branch of a ragged list is that of the full rollout, and a trunk ends at its own last branch step."""
    policy = TinyPolicy(torch.float64)
    table, (condition, noise) = tff.step_table(policy.sigmas(5)), start(policy)
    arguments = (policy, condition, table, noise)
    full = tff.rollout(*arguments, 4, 9, None, max_batch, guidance_scale)
    policy.calls.clear()
    branches = listed(RAGGED)
    drawn = tff.rollout(*arguments, branches, 9, None, max_batch, guidance_scale)
    for pair, (trajectory, step, count) in enumerate(RAGGED):
        rows = slice(int(branches.first_rows[pair]), int(branches.first_rows[pair]) + count)
        for flat, dense in (
            (drawn.flat_branches, full.branches),
            (drawn.flat_log_prob, full.log_prob),
            (drawn.flat_latents, full.latents),
        ):
            torch.testing.assert_close(flat[rows], dense[trajectory, step, :count], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(drawn.flat_states[pair], full.states[trajectory, step], rtol=1e-12, atol=1e-12)
    trunks, tails = (1 + 1) + (3 + 1) + (2 + 1), sum(count * (4 - step) for _, step, count in RAGGED)
    assert drawn.num_row_evaluations == sum(rows for rows, _ in policy.calls) == trunks + tails
    if max_batch is None:
        assert drawn.num_calls == 5


def test_processes_make_calls_without_rows():
    policy = TinyPolicy()
    table, (condition, noise) = tff.step_table(policy.sigmas(5)), start(policy)
    alone = tff.rollout(policy, condition, table, noise, listed(RAGGED), max_batch=4)
    policy.calls.clear()
    least = tff.rollout(policy, condition, table, noise, listed(RAGGED), max_batch=4, least_calls=[(8, 0, 1, 0)] * 5)
    assert least.num_calls == len(policy.calls) == 45
    torch.testing.assert_close(least.flat_latents, alone.flat_latents)


@pytest.mark.parametrize("group", ["seed", "prompt"])
def test_advantages_of_a_list_are_those_of_its_groups(group):
    """Trajectories 0 and 1 are of one prompt; a prompt group is what they have at one step."""
    rewards = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(rewards, group, [5, 5, 3], branches=listed(RAGGED))
    groups = {"seed": [[0, 1], [2, 3, 4], [5], [6, 7], [8, 9, 10, 11]]}
    groups["prompt"] = [[0, 1, 5], [2, 3, 4], [6, 7], [8, 9, 10, 11]]
    for rows in groups[group]:
        expected = group_advantages(rewards[rows].view(1, 1, -1)).flatten()
        torch.testing.assert_close(advantages[rows], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group", ["seed", "prompt"])
def test_spreads_of_a_list_are_those_of_its_groups(group):
    """Trajectories 0 and 1 are of one prompt; both branch at step 1."""
    branches = listed(RAGGED, num_trajectories=4)
    rewards = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    groups = [[0, 1], [2, 3, 4], [5], [6, 7], [8, 9, 10, 11]]
    if group == "prompt":
        groups[0] = groups[2] = [0, 1, 5]
    expected = [rewards[rows].std(correction=0) for rows in groups]
    spreads = group_spreads(rewards, GRPOConfig(num_seeds=2, group=group), branches)
    torch.testing.assert_close(spreads, torch.stack(expected))


def test_advantages_of_the_dense_list_are_those_of_the_dense_tensor():
    rewards = torch.randn(4, 3, 5, dtype=torch.float64)
    for group in ("seed", "prompt"):
        flat = group_advantages(
            rewards.flatten(), group, [0, 1, 0, 1], branches=Branches.everywhere(4, {0: 5, 1: 5, 4: 5})
        )
        assert torch.equal(flat.view(4, 3, 5), group_advantages(rewards, group, [0, 1, 0, 1]))


def gradient(policy, table, branches, advantages, **settings):
    """What one update of plain descent takes off the weights."""
    condition, noise = start(policy)
    drawn = tff.rollout(policy, condition, table, noise, branches)
    before = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    config = GRPOConfig(num_updates=1, max_grad_norm=math.inf, **settings)
    update(policy, drawn, advantages, sgd(policy, 1.0), config)
    return before - torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 2}])
def test_the_loss_is_the_weighted_mean_over_pairs(settings):
    """Pair by pair, each in an update alone: the sum of weight x gradient over the number of pairs."""
    weights, table = [1.0, 0.5, 2.0, 1.0, 3.0], tff.step_table(TinyPolicy().sigmas(5))
    advantages = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    branches = listed(RAGGED, weights=weights)
    together = gradient(TinyPolicy(torch.float64), table, branches, advantages, **settings)
    expected = torch.zeros_like(together)
    for pair, weight in enumerate(weights):
        alone = torch.where(branches.pair_of_row == pair, advantages, 0)
        expected += weight * gradient(TinyPolicy(torch.float64), table, listed(RAGGED), alone)
    torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match=r"update: advantages must be of 12 branches, got \[3\]"):
        gradient(TinyPolicy(torch.float64), table, branches, advantages[:3])


def test_a_table_of_branches_is_a_whole_iteration():
    policy, images = TinyPolicy(), []
    config = GRPOConfig(num_steps=5, num_seeds=2, num_branches=(3, 0, 2, 4), max_batch=6)
    reward = lambda drawn, *texts: images.append(len(drawn)) or brightness(drawn, *texts)  # noqa: E731
    metrics = grpo_step(policy, PROMPTS, reward, sgd(policy), config)
    assert sum(images) == 6 * 9
    assert metrics["num_row_evaluations"] == 6 * (4 + 3 * 4 + 2 * 2 + 4)
    assert [name for name in metrics if "_step_" in name] == [f"group_std_step_{step}" for step in (0, 2, 3)]
    assert metrics["signal_fraction"] == 1
    weights = tff.step_table(policy.sigmas(5), branch_steps=(0, 2, 3)).noise_weight
    torch.testing.assert_close(config.table(policy).noise_weight, weights)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((6, 6), "one number for each of the 4 branch steps"),
        ((6, 0, -1, 3), "not negative, and positive at some branch step"),
        ((0, 0, 0, 0), "not negative, and positive at some branch step"),
        ((6, 0, 1, 3), "enough for a group of two or more rewards"),
        (0, ">= 1"),
    ],
)
def test_impossible_tables_are_named(table, message):
    with pytest.raises(ValueError, match=f"GRPOConfig: num_branches must be {message}"):
        GRPOConfig(num_steps=5, num_branches=table)


@pytest.mark.parametrize(
    ("num_branches", "message"),
    [
        ([2, 2], r"4 counts, one per branch step, not all 0, got \[2, 2\]"),
        ([0, 0, 0, 0], "4 counts, one per branch step, not all 0"),
        (Branches.everywhere(2, {0: 2}), "a list of 3 trajectories like noise, got 2"),
        (Branches.everywhere(3, {4: 2}), r"at the branch steps \[0, 1, 2, 3\] of table, got \[4\]"),
    ],
)
def test_a_rollout_names_an_impossible_list(num_branches, message):
    policy = TinyPolicy()
    condition, noise = start(policy)
    with pytest.raises(ValueError, match=f"rollout: num_branches must be {message}"):
        tff.rollout(policy, condition, tff.step_table(policy.sigmas(5)), noise, num_branches)
    assert not policy.calls


def test_ragged_lists_bring_few_shapes():
    """Twenty random lists under the graphs' row counts: no more shapes than there are buckets, and the same latents."""
    policy, graphs = TinyPolicy(), CudaGraphs(None)
    table, (condition, noise) = tff.step_table(policy.sigmas(5)), start(policy)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        entries = [(n, step, 3) for n in range(3) for step in range(4) if torch.rand((), generator=random) < 0.5]
        if len(entries) < 2:
            continue
        branches = listed(entries)
        got = tff.rollout(policy, condition, table, noise, branches, graphs=graphs)
        want = tff.rollout(policy, condition, table, noise, branches)
        torch.testing.assert_close(got.flat_latents, want.flat_latents, rtol=1e-5, atol=1e-6)
        policy.calls = policy.calls[: -want.num_calls]
    assert {rows for rows, _ in policy.calls} <= {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40}
