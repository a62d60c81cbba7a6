"""Time to reward: its ratios on curves that are known, the paper's iteration against ours, and a toy of the whole."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import ROOT
from support.tiny import PROMPTS, TinyPolicy, brightness

import tempflow_fast as tff
from bench.experiment.ratios import speedup
from bench.experiment.results import read_results
from bench.time_to_reward.__main__ import QUICK, Race
from bench.time_to_reward.page import write_page
from bench.time_to_reward.paper_step import paper_step
from tempflow_fast.rewards import get_reward


def run(seed: int, seconds: float, *accuracy: float) -> dict:
    """A result with a look every so many seconds."""
    return {"seed": seed, "seconds": [seconds * index for index in range(len(accuracy))], "accuracy": accuracy}


def test_the_ratio_is_a_geometric_mean_over_seeds():
    slow = [run(1, 80.0, 0.5, 0.8), run(2, 180.0, 0.5, 0.8)]
    fast = [run(2, 20.0, 0.5, 0.8), run(1, 20.0, 0.5, 0.8), run(3, 1.0, 0.5, 0.8)]
    found = speedup(slow, fast, 0.8)
    assert found.value == pytest.approx(6)
    assert found.count == 2
    assert not found.is_bound
    assert found.low < 4 < 9 < found.high


def test_a_slower_run_that_ended_early_gives_a_lower_bound():
    found = speedup([run(1, 50.0, 0.5, 0.6, 0.7)], [run(1, 20.0, 0.5, 0.8)], 0.8)
    assert found.value == pytest.approx(5)
    assert str(found) == "at least 5.00x"


def test_a_faster_run_that_ended_early_gives_nothing():
    assert speedup([run(1, 50.0, 0.5, 0.9)], [run(1, 20.0, 0.5, 0.7)], 0.8) is None
    assert speedup([run(1, 50.0, 0.5, 0.9)], [run(2, 20.0, 0.5, 0.9)], 0.8) is None


def test_an_arm_whose_method_is_not_tuned_is_refused():
    with pytest.raises(ValueError, match="tempflow must be tuned by `make experiment` first"):
        Race().plans([])


def test_the_papers_iteration_raises_what_it_is_rewarded_for():
    policy, rewards = TinyPolicy(), []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    config = tff.GRPOConfig(num_steps=4, num_seeds=2, num_branches=6, num_updates=2, clip_range=0.1)
    for seed in range(30):
        metrics = paper_step(policy, PROMPTS, get_reward(brightness), optimizer, config, seed)
        rewards.append(float(metrics["reward_mean"]))
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5


def test_an_arm_that_is_timed_has_the_curve_of_the_first_at_its_own_pace(tmp_path):
    usual = {"stage": "time", "seed": 1, "learning_rate": 4e-4, "noise_level": 0.8, "budget": 9}
    usual |= {"iterations": [0, 5, 10], "accuracy": [0.5, 0.6, 0.8]}
    slow = usual | {"method": "paper_eager", "processor": [0.0, 30.0, 50.0]}  # 4 s an iteration after the first look
    timed = usual | {"method": "structure", "processor": [0.0, 90.0, 100.0], "accuracy": [0.5, 0.5, 0.5]}
    write_page(tmp_path / "page.md", [slow, timed], ("paper_eager", "structure"), 1, 0.8, 9)
    text = (tmp_path / "page.md").read_text()
    assert "**2.00x (one seed)**" in text
    assert "| 2.00 | 25 s |" in text


@pytest.mark.slow
def test_a_toy_runs_to_its_page(tmp_path):
    command = [sys.executable, "-m", "bench.time_to_reward", "--quick", "--output", str(tmp_path / "runs")]
    command += ["--page", str(tmp_path / "page.md"), "--target", "0.999"]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    results = tmp_path / "page" / "results.jsonl"
    found = read_results(results)
    assert [(each["method"], each["seed"]) for each in found] == [(arm, s) for s in QUICK.seeds for arm in QUICK.arms]
    assert found[0]["evaluations"][-1] == found[1]["evaluations"][-1]
    assert "more than" in (tmp_path / "page.md").read_text()
