"""What a reward cannot do to the run: change its images, prompts and metadata, end it, or change what all share."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
from support.levels import TEXTS, images, level
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.rewards import RewardError, WeightedReward, get_reward
from tempflow_fast.rewards.isolated import isolated_call

METADATA = [{"tag": row, "include": [{"class": "bus"}]} for row in range(8)]


def in_place(images, prompts, metadata):
    return images.sub_(0.5).div_(0.25).mean((1, 2, 3))


def by_numpy(images, prompts, metadata):
    pixels = images.numpy()
    pixels *= 0
    return pixels.mean((1, 2, 3))


def by_data(images, prompts, metadata):
    images.data = torch.zeros(1)
    return torch.zeros(len(prompts))


def in_one_row(images, prompts, metadata):
    images[3:4].flip(-1).copy_(images[:1])
    images[3].zero_()
    return images.mean((1, 2, 3))


def clearing(images, prompts, metadata):
    for entry in metadata:
        entry["include"][0].clear()
        entry.clear()
    prompts.clear()
    metadata.clear()
    return torch.zeros(len(images))


@pytest.mark.parametrize("vandal", [in_place, by_numpy, by_data, in_one_row, clearing], ids=lambda f: f.__name__)
def test_other_rewards_see_what_they_would_see_alone(vandal):
    def witness(images, prompts, metadata):
        assert prompts == TEXTS
        assert [entry["include"][0]["class"] for entry in metadata] == ["bus"] * 8
        return level(images, prompts, metadata)

    batch, metadata = images(), [dict(entry) for entry in METADATA]
    scores = WeightedReward({"vandal": vandal, "witness": witness}, {"vandal": 1, "witness": 1}).score(
        batch, TEXTS, metadata
    )
    assert torch.equal(scores.parts["witness"], torch.arange(8, dtype=torch.float64) / 8)
    assert torch.equal(batch, images())
    assert metadata == METADATA


def test_a_reward_that_fails_half_way_gets_its_images_again_as_they_were():
    def twice(images, prompts, metadata):
        images.zero_() if len(images) > 2 else None
        if len(images) > 2:
            raise MemoryError
        return level(images, prompts, metadata)

    with pytest.warns(UserWarning, match="tries halves"):
        scores = get_reward(twice)(images(4), TEXTS[:4], METADATA[:4])
    assert scores.tolist() == [0, 0.125, 0.25, 0.375]


def test_images_are_copied_only_if_a_reward_writes_to_them():
    def noting(images, prompts, metadata):
        images.mean(), images[2:].cpu(), (images * 255).round().to(torch.uint8)
        shared.append(torch._C._is_cow_tensor(images))
        return level(images, prompts, metadata)

    shared = []
    isolated_call(noting, images(), TEXTS, METADATA)
    assert shared == [True]


def test_statistics_of_training_do_not_see_what_a_reward_does_to_its_images():
    runs = []
    for reward in (brightness, lambda *call: (brightness(*call), call[0].zero_())[0]):
        policy = TinyPolicy()
        config = GRPOConfig(num_steps=4, num_seeds=2, num_branches=3, max_batch=7)
        metrics = grpo_step(policy, PROMPTS, reward, sgd(policy), config)
        runs.append({name: float(value) for name, value in metrics.items() if "seconds" not in name})
    assert runs[0] == runs[1]


def test_scores_are_copied_from_a_tensor_that_the_reward_uses_again():
    kept = torch.zeros(2, dtype=torch.float64)

    def reusing(images, prompts, metadata):
        return kept.copy_(level(images, prompts, metadata))

    reward = get_reward(reusing)
    first = reward(images()[:2], TEXTS[:2], METADATA[:2])
    reward(images()[4:6], TEXTS[:2], METADATA[:2])
    assert first.tolist() == [0, 0.125]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda: sys.exit(0), "SystemExit: 0"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt()), "KeyboardInterrupt: "),
        (lambda: (_ for _ in ()).throw(GeneratorExit()), "GeneratorExit: "),
    ],
    ids=["exit", "interrupt", "generator"],
)
def test_a_reward_cannot_end_python(end, reason):
    calls = []

    def ending(images, prompts, metadata):
        calls.append(len(images))
        end()

    policy = TinyPolicy()
    with pytest.raises(RewardError, match=f'reward "ending" failed on sample 0 .*: {reason}; a reward must return'):
        grpo_step(policy, PROMPTS, ending, sgd(policy), GRPOConfig(num_steps=4, num_seeds=2, num_branches=3))
    assert calls == [54], "there is nothing to retry"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: os.chdir("/"), "the working directory from .* to /"),
        (lambda: torch.set_default_dtype(torch.float64), "torch's default dtype from torch.float32 to torch.float64"),
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "torch's number of threads from"),
        (lambda: torch.use_deterministic_algorithms(True), "torch's deterministic mode from False to True"),
    ],
    ids=["directory", "dtype", "threads", "deterministic"],
)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.filterwarnings("ignore:reward ")
def test_what_the_process_shares_is_set_back_and_the_reward_named(change, words, fails):
    def state():
        return os.getcwd(), torch.get_default_dtype(), torch.get_num_threads(), torch.randn(1).dtype

    def changing(images, prompts, metadata):
        change()
        return 1 / 0 if fails else torch.zeros(len(images))

    before = state()
    with pytest.raises(RewardError, match="ZeroDivisionError" if fails else f'"changing" .*: it has changed {words}'):
        get_reward(changing)(images(), TEXTS, METADATA)
    assert state() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_belongs_to_a_thread_stays_in_the_thread_of_the_reward():
    def changing(images, prompts, metadata):
        torch.set_grad_enabled(True)
        torch.set_default_device("meta")
        torch.set_autocast_enabled("cpu", True)
        np.seterr(all="raise")
        return level(images, prompts, metadata)

    with torch.no_grad():
        get_reward(changing)(images(), TEXTS, METADATA)
        assert not torch.is_grad_enabled()
    assert torch.get_default_device().type == torch.zeros(1).device.type == "cpu"
    assert not torch.is_autocast_enabled("cpu")
    assert np.geterr()["over"] != "raise"
