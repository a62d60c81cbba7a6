"""The cache of scores."""

import json
from dataclasses import dataclass

import pytest
import torch
from support.levels import HERE, NO_METADATA, TEXTS, Scaled, doubled, images, level
from torch import Tensor

from tempflow_fast.rewards import RewardError, get_reward
from tempflow_fast.rewards.base import FinalError
from tempflow_fast.rewards.cache import CachedReward


def test_a_reward_that_cannot_be_hashed_has_one_memory_for_all_its_descriptions():
    @dataclass
    class Counting:
        calls: int = 0

        def __call__(self, images, prompts, metadata):
            self.calls += 1
            return images.mean((1, 2, 3))

    reward = Counting()
    for _ in range(2):
        get_reward({"mine": {"reward": reward, "cache": 9}})(images(3), ["a"] * 3, NO_METADATA[:3])
    assert reward.calls == 1


def test_the_cache_scores_equal_images_once_and_forgets_the_oldest():
    inner = Scaled()
    cached = CachedReward(inner, 4)
    twice = torch.cat([images(2), images(2)])
    assert cached(twice, ["a"] * 4, NO_METADATA[:4]).tolist() == [0, 0.125, 0, 0.125]
    assert inner.calls == [2]
    cached(images(2), ["b", "a"], NO_METADATA[:2])  # another prompt is another sample
    cached(images(2), ["a", "a"], [{}, {"tag": "x"}])  # and so is other metadata
    assert inner.calls == [2, 1, 1]
    cached(images(8)[4:], ["a"] * 4, NO_METADATA[:4])  # pushes the others out
    assert cached(images(1), ["a"], NO_METADATA[:1]).tolist() == [0]
    assert inner.calls == [2, 1, 1, 4, 1]
    assert CachedReward(doubled, 1).range == (0.0, 2.0)


def test_the_cache_counts_a_failed_sample_among_all_images():
    def final(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        if TEXTS[6] in prompts:
            raise FinalError(prompts.index(TEXTS[6]), "for good")
        return level(images, prompts, metadata)

    cached = CachedReward(final, 8)
    cached(images()[:4], TEXTS[:4], NO_METADATA[:4])
    with pytest.raises(RewardError, match=r"sample 6 \(prompt 'prompt 6'\): for good"):
        get_reward({"mine": {"reward": cached}})(images(), TEXTS, NO_METADATA)


def test_a_described_cache_is_one_however_often_it_is_described():
    inner = Scaled()
    for _ in range(2):
        get_reward({"mine": {"reward": inner, "cache": 10}})(images(), TEXTS, NO_METADATA)
    assert inner.calls == [8]
    named = {"mine": {"reward": f"{HERE}:Scaled", "scale": 11, "cache": 10}}
    for _ in range(2):
        get_reward(json.dumps(named))(images(), TEXTS, NO_METADATA)
    assert get_reward(named).rewards["mine"].reward.calls == [8]
