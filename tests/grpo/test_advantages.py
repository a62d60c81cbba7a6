"""Group-relative advantages against the formula written out, and what carries no signal."""

from __future__ import annotations

import pytest
import torch

from tempflow_fast import GRPOConfig, group_advantages
from tempflow_fast.grpo.advantages import advantages_of
from tempflow_fast.grpo.branches import Branches
from tempflow_fast.rewards import Scores

FAR_APART = torch.tensor([0.0, 1e200], dtype=torch.float64).view(2, 1, 1)
"""Between groups alone: each one has no spread."""


def written_out(values: list[float], eps: float, clip: float) -> list[float]:
    mean = sum(values) / len(values)
    std = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return [min(max((value - mean) / (std + eps), -clip), clip) for value in values]


def test_seed_groups_are_the_branches_of_one_trajectory_and_step():
    rewards = torch.randn(3, 2, 5, dtype=torch.float64)
    advantages = group_advantages(rewards, adv_eps=0.1, adv_clip=1.2)
    for n in range(3):
        for b in range(2):
            expected = written_out(rewards[n, b].tolist(), 0.1, 1.2)
            torch.testing.assert_close(advantages[n, b], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("as_ids", [list, torch.tensor])
def test_prompt_groups_pool_the_trajectories_of_a_prompt(as_ids):
    rewards = torch.randn(5, 2, 3, dtype=torch.float64)
    ids = [7, 3, 7, 7, 3]
    advantages = group_advantages(rewards, group="prompt", prompt_ids=as_ids(ids))
    for prompt in (3, 7):
        rows = [n for n in range(5) if ids[n] == prompt]
        for b in range(2):
            expected = torch.tensor(written_out(rewards[rows, b].flatten().tolist(), 1e-4, 5.0), dtype=torch.float64)
            torch.testing.assert_close(advantages[rows, b].flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -1 / 3])
def test_equal_rewards_give_exactly_zero(value, dtype):
    rewards = torch.full((4, 3, 9), value, dtype=dtype)  # the float64 mean of nine such numbers is not the number
    for group in ("seed", "prompt"):
        assert group_advantages(rewards, group, prompt_ids=[0] * 4, adv_eps=0.0).eq(0).all()


def test_clipping_bounds_an_outlier():
    rewards = torch.zeros(1, 1, 100)
    rewards[0, 0, 0] = 1.0
    assert group_advantages(rewards, adv_clip=2.5).max() == 2.5


def spread_of(rewards: torch.Tensor, eps: float) -> float:
    values = rewards.flatten().tolist()
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5 + eps


@pytest.mark.parametrize("group", ["seed", "prompt"])
@pytest.mark.parametrize("scale", ["global", "none"])
def test_the_mean_is_the_groups_and_the_spread_is_that_of_the_branch_step(group, scale):
    rewards, ids = torch.randn(4, 2, 3, dtype=torch.float64) * torch.tensor([1.0, 7.0]).view(1, 2, 1), [0, 0, 5, 5]
    advantages = group_advantages(rewards, group, ids, adv_eps=0.1, adv_clip=100.0, scale=scale)
    for b in range(2):
        spread = spread_of(rewards[:, b], 0.1) if scale == "global" else 1.0
        for n in range(4):
            rows = [n] if group == "seed" else [m for m in range(4) if ids[m] == ids[n]]
            expected = (rewards[n, b] - rewards[rows, b].mean()) / spread
            torch.testing.assert_close(advantages[n, b], expected, rtol=1e-12, atol=1e-14)


def test_a_list_with_other_steps_per_trajectory_has_the_spread_of_each_step():
    three = torch.tensor([0, 1, 2])
    branches = Branches(3, three, torch.tensor([1, 4, 1]), torch.tensor([2, 3, 3]), torch.ones(3).double())
    rewards = torch.randn(8, dtype=torch.float64)
    advantages = group_advantages(rewards, branches=branches, scale="global", adv_clip=100.0)
    early, late = torch.cat([rewards[:2], rewards[5:]]), rewards[2:5]
    expected = [rewards[:2] - rewards[:2].mean(), late - late.mean(), rewards[5:] - rewards[5:].mean()]
    spreads = [spread_of(early, 1e-4), spread_of(late, 1e-4), spread_of(early, 1e-4)]
    expected = torch.cat([part / spread for part, spread in zip(expected, spreads, strict=True)])
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", ["global", "none"])
def test_groups_without_a_signal_stay_exactly_0_next_to_others(scale):
    rewards = torch.full((3, 2, 9), 0.1, dtype=torch.float64)
    rewards[2] += torch.rand(2, 9, dtype=torch.float64)
    advantages = group_advantages(rewards, scale=scale, adv_eps=0.0)
    assert advantages[:2].eq(0).all()
    assert advantages[2].ne(0).all()
    assert group_advantages(rewards[:1], scale=scale, adv_eps=0.0).eq(0).all()


@pytest.mark.parametrize("scale", ["group", "global"])
def test_several_rewards_are_summed_as_rewards_or_as_advantages(scale):
    parts = {"a": torch.randn(12, dtype=torch.float64), "b": 5 * torch.randn(12, dtype=torch.float64)}
    scores, branches = Scores(parts, {"a": 1.0, "b": 0.5}), Branches.everywhere(2, {0: 3, 1: 3})

    def alone(rewards):
        return group_advantages(rewards, branches=branches, scale=scale)

    sums = {aggregate: GRPOConfig(aggregate=aggregate, adv_scale=scale) for aggregate in ("rewards", "advantages")}
    found = {aggregate: advantages_of(scores, config, branches) for aggregate, config in sums.items()}
    torch.testing.assert_close(found["rewards"], alone(parts["a"] + 0.5 * parts["b"]))
    torch.testing.assert_close(found["advantages"], alone(parts["a"]) + 0.5 * alone(parts["b"]))


def test_gdpo_normalises_each_reward_in_its_group_and_the_sum_in_the_iteration():
    parts = {"a": torch.randn(2, 2, 3, dtype=torch.float64), "b": 5 * torch.randn(2, 2, 3, dtype=torch.float64)}
    parts["a"][1, 1] = parts["b"][1, 1] = 0.3  # a group without a signal
    scores = Scores({name: part.flatten() for name, part in parts.items()}, {"a": 1.0, "b": 0.5})
    config = GRPOConfig(aggregate="gdpo", adv_eps=1e-4)
    found = advantages_of(scores, config, Branches.everywhere(2, {0: 3, 1: 3})).view(2, 2, 3)

    def normalised(part):
        return (part - part.mean(2, keepdim=True)) / (part.std(2, correction=0, keepdim=True) + 1e-4)

    total = normalised(parts["a"]) + 0.5 * normalised(parts["b"])
    for b in range(2):
        batch = total[:, b]
        expected = (batch - batch.mean()) / (batch.std(correction=0) + 1e-4)
        torch.testing.assert_close(found[:, b], expected, rtol=1e-11, atol=1e-11)
    assert found[1, 1].eq(0).all()
    with pytest.raises(ValueError, match="adv_scale must be 'group' with aggregate"):
        GRPOConfig(aggregate="gdpo", adv_scale="none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": torch.zeros(4, 2)}, r"rewards must be floating point \[N, B, K\], got torch.float32 \[4, 2\]"),
        ({"rewards": torch.zeros(1, 1, 2, dtype=torch.long)}, "got torch.int64"),
        ({"rewards": torch.tensor([[[0.0, 1.0], [2.0, float("nan")]]])}, r"got nan at \[0, 1, 1\]"),
        ({"rewards": torch.tensor([[[0.0, -float("inf")]]])}, r"got -inf at \[0, 0, 1\]"),
        ({"rewards": None}, r"rewards must be floating point \[N, B, K\], got <class 'NoneType'>"),
        ({"rewards": torch.zeros(2, 1, 2), "adv_eps": float("nan")}, "adv_eps must be finite, got nan"),
        ({"rewards": torch.zeros(2, 1, 2), "adv_clip": 0.0}, "adv_clip must be positive, got 0.0"),
        ({"rewards": torch.zeros(2, 1, 2), "group": "batch"}, "group must be one of .* got 'batch'"),
        ({"rewards": torch.zeros(2, 1, 2), "scale": "batch"}, "scale must be one of .* got 'batch'"),
        ({"rewards": torch.zeros(2, 1, 2).double() + FAR_APART, "scale": "global"}, "rewards must be of a spread that"),
        ({"rewards": torch.zeros(2, 1, 2), "group": "prompt"}, r"prompt_ids must be \[2\] .* got None"),
        ({"rewards": torch.zeros(2, 1, 2), "group": "prompt", "prompt_ids": [0]}, r"must be \[2\] .* got \[1\]"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=f"group_advantages: .*{message}"):
        group_advantages(**arguments)
