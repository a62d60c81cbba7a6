"""Weighted sums of rewards."""

import torch
from support.levels import HERE, NO_METADATA, TEXTS, images, level

from tempflow_fast.rewards import Scores, get_reward
from tempflow_fast.rewards.base import range_of


def test_the_range_of_a_sum_counts_the_sign_of_weights():
    assert get_reward(f"{HERE}:doubled=-0.5,shapes=3").range == (-1.0, 3.0)
    assert range_of(level) == (-float("inf"), float("inf"))


def test_a_reward_of_weight_zero_is_scored_and_of_no_consequence():
    reward = get_reward(f"{HERE}:level=0,{HERE}:doubled=1")
    scores = reward.score(images(), TEXTS, NO_METADATA)
    assert torch.equal(scores.total, scores.parts[f"{HERE}:doubled"])
    assert torch.equal(scores.parts[f"{HERE}:level"], torch.arange(8, dtype=torch.float64) / 8)
    assert reward.range == (0.0, 2.0)


def test_advantages_can_be_summed_reward_by_reward():
    scores = Scores({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0, 100.0])}, {"a": 1.0, "b": 0.5})
    centred = scores.weighted_sum(lambda part: (part - part.mean()) / part.std(correction=0))
    assert torch.equal(centred, torch.tensor([-1.5, 1.5]))
