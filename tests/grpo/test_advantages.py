"""Group-relative advantages against the formula written out, and what carries no signal."""

from __future__ import annotations

import pytest
import torch

from tempflow_fast import group_advantages


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
        ({"rewards": torch.zeros(2, 1, 2), "group": "prompt"}, r"prompt_ids must be \[2\] .* got None"),
        ({"rewards": torch.zeros(2, 1, 2), "group": "prompt", "prompt_ids": [0]}, r"must be \[2\] .* got \[1\]"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=f"group_advantages: .*{message}"):
        group_advantages(**arguments)
