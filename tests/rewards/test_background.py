"""Rewards in a thread of their own, and their time-outs."""

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from support.levels import NO_METADATA, TEXTS, failing_on, images, level, raises
from torch import Tensor

from tempflow_fast.processes import MINUTES
from tempflow_fast.rewards import BackgroundScorer, RewardError, Scores, WeightedReward, background, get_reward
from tempflow_fast.rewards.weighted import TIMEOUT


def slow(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    time.sleep(0.1)
    return level(images, prompts, metadata)


def scored_beside(reward: WeightedReward, ends: list[int], pause: float = 0.0) -> Scores:
    """The scores of pieces that end at `ends`, each handed over after a pause."""
    with BackgroundScorer(reward) as scorer:
        for start, end in zip([0, *ends], ends, strict=False):
            scorer.submit(images()[start:end], TEXTS[start:end], NO_METADATA[start:end])
            time.sleep(pause)  # the work that makes the next piece
        return scorer.collect()


def test_pieces_are_scored_beside_the_caller_and_come_back_in_order():
    reward, start = get_reward(slow), time.perf_counter()
    scores = scored_beside(reward, [3, 5, 8], pause=0.1)
    assert time.perf_counter() - start < 0.55  # 0.6 one after the other
    assert torch.equal(scores.total, reward(images(), TEXTS, NO_METADATA))


def test_a_failure_beside_the_caller_counts_samples_over_all_pieces():
    reward = WeightedReward({"mine": failing_on(6, raises)}, {"mine": 1})
    with pytest.raises(RewardError, match='reward "mine" failed on sample 6'):
        scored_beside(reward, [4, 6, 7])


def test_a_piece_that_failed_stops_the_next_one():
    handed_over: list[str] = []

    def fails_at_once(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        handed_over.extend(prompts)
        raise KeyError("no such thing")

    with pytest.raises(RewardError, match="sample 0"):
        scored_beside(WeightedReward({"mine": fails_at_once}, {"mine": 1}), [1, 2, 3, 4, 5, 6, 7, 8], pause=0.1)
    assert len(handed_over) < 4


@pytest.fixture
def stuck():
    """A reward that hangs as soon as it sees the third text."""
    release = threading.Event()

    def stuck(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        if TEXTS[2] in prompts:
            release.wait(30)
        return level(images, prompts, metadata)

    yield stuck
    release.set()


def test_time_running_out_is_a_failure_that_names_the_reward_and_the_piece(stuck):
    spec = {"fine": {"reward": level}, "mine": {"reward": stuck, "timeout": 0.2}}
    message = r'reward "mine" failed on sample {} \(prompt .prompt {}.\): no result within 0.2 s, the first of 2 images'
    with pytest.raises(RewardError, match=message.format(2, 2)):
        scored_beside(get_reward(spec), [2, 4])
    with pytest.raises(RewardError, match=message.format(0, 1)):
        get_reward(spec)(images()[1:3], TEXTS[1:3], NO_METADATA[1:3])
    assert get_reward(spec)(images()[:2], TEXTS[:2], NO_METADATA[:2]).tolist() == [0, 0.25], "the others go on"


@pytest.mark.slow
def test_a_reward_that_hangs_does_not_hold_up_the_end_of_python():
    code = """
import threading, torch
from tempflow_fast.rewards import get_reward
reward = get_reward({"mine": {"reward": lambda *call: threading.Event().wait(), "timeout": 0.1}})
try: reward(torch.zeros(1, 3, 2, 2), ["x"], [{}])
except RuntimeError as error: print(error)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "no result within 0.1 s" in shown.stdout


def test_every_reward_has_a_time_out_below_the_patience_of_processes():
    assert get_reward("shapes=1,jpeg_compressibility=1").timeouts == dict.fromkeys(
        ("shapes", "jpeg_compressibility"), TIMEOUT
    )
    assert 0 < TIMEOUT < 60 * MINUTES
    assert get_reward('{"shapes": {"timeout": null}}').timeouts == {"shapes": None}


class CountedStreams:
    """The part of torch.cuda that a scorer calls; `made` counts the streams, `used` the pieces on each."""

    def __init__(self):
        self.made, self.used = [], []

    def Stream(self, device):  # noqa: N802  torch's name
        self.made.append(SimpleNamespace(device=device, wait_event=lambda event: None))
        return self.made[-1]

    def current_stream(self, device):
        return SimpleNamespace(record_event=lambda: "made")

    @contextmanager
    def stream(self, stream):
        self.used.append(stream)
        yield


class OnCuda(Tensor):
    """Images that say they are on a GPU."""

    is_cuda = True

    def record_stream(self, stream):
        pass


def test_all_iterations_share_one_stream_per_device(monkeypatch):
    """Allocators and cuBLAS keep blocks and workspaces for every stream that they have seen."""
    cuda = CountedStreams()
    monkeypatch.setattr(background, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(background, "_streams", {})
    scores = Scores({"mine": torch.zeros(8)}, {"mine": 1.0})
    reward = SimpleNamespace(score=lambda *piece: scores)  # rewards have a thread with the same stream inside this one
    for _ in range(3):
        with BackgroundScorer(reward) as scorer:
            for _ in range(2):
                scorer.submit(images().as_subclass(OnCuda), TEXTS, NO_METADATA)
            scorer.collect()
    assert len(cuda.made) == 1
    assert cuda.used == cuda.made * 6
