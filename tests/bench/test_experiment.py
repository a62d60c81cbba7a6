"""The experiment: its arithmetic on curves that are known, and a toy of it from the first run to the page."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from support import ROOT
from support.tiny import PROMPTS, TinyPolicy, brightness

import tempflow_fast as tff
from bench.experiment import awm
from bench.experiment.__main__ import QUICK
from bench.experiment.analysis import Mean, at, difference, first_at, reported
from bench.experiment.methods import COMPETITORS
from bench.experiment.page import write_page
from bench.experiment.plans import evaluations_of
from bench.experiment.results import add_result, current, is_done, read_results
from bench.experiment.stages import Design
from tempflow_fast.rewards import get_reward


def curve(seed: int, *accuracy: float, method: str = "tempflow", stage: str = "report") -> dict:
    """A result with looks at 0, 100, 200, ... evaluations."""
    return {
        "stage": stage,
        "method": method,
        "seed": seed,
        "learning_rate": 1e-4,
        "noise_level": 0.8,
        "evaluations": [100.0 * index for index in range(len(accuracy))],
        "work": [130.0 * index for index in range(len(accuracy))],
        "seconds": [float(index) for index in range(len(accuracy))],
        "accuracy": list(accuracy),
        "reward": list(accuracy),
        "tasks": {"counting": list(accuracy)},
        "metrics": {"clip_fraction": 0.0},
    }


def test_a_target_is_reached_on_the_line_between_two_looks():
    run = curve(1, 0.5, 0.6, 0.8)
    assert first_at(run, "evaluations", 0.7) == pytest.approx(150)
    assert first_at(run, "seconds", 0.55) == pytest.approx(0.5)
    assert first_at(run, "evaluations", 0.5) == 0
    assert first_at(run, "evaluations", 0.81) is None
    assert at(run, "evaluations", 125) == pytest.approx(0.65)
    assert at(run, "evaluations", 1e9) == 0.8


def test_the_interval_is_students():
    mean = Mean.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean.value, mean.count) == (3.0, 5)
    assert mean.error == pytest.approx(2.776 * (2.5 / 5) ** 0.5)


def test_differences_are_paired_by_seed_at_equal_evaluations():
    first = [curve(1, 0.5, 0.7, 0.9), curve(2, 0.5, 0.6, 0.7), curve(3, 0.5, 1.0)]
    second = [curve(2, 0.5, 0.5), curve(1, 0.5, 0.6)]
    found = difference(first, second)
    assert found.count == 2
    assert found.value == pytest.approx(0.1)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_equal_seconds_are_another_comparison():
    slow = {**curve(1, 0.5, 0.7, 0.9), "seconds": [0.0, 10.0, 20.0]}
    fast = curve(1, 0.5, 0.6, 0.7)
    assert difference([slow], [fast]).value == pytest.approx(0.2)
    assert difference([slow], [fast], "seconds").value == pytest.approx(0.54 - 0.7)


def test_tuning_chooses_the_best_end_and_the_smaller_rate_of_equal_ones():
    results = [
        {**curve(101, 0.5, accuracy, stage="tuning"), "learning_rate": rate, "noise_level": noise}
        for rate, noise, accuracy in ((2e-4, 0.8, 0.6), (4e-4, 0.8, 0.7), (8e-4, 0.8, 0.7), (4e-4, 0.5, 0.65))
    ]
    results.append({**curve(1, 0.5, 0.99), "learning_rate": 2e-4})  # a reported run has no say
    assert Design().chosen(results, "tempflow", (0.8, 0.5)) == (4e-4, 0.8)


def test_a_method_without_noise_tries_a_rate_between_its_two_best():
    results = [
        {**curve(101, 0.5, accuracy, method=name, stage="tuning"), "learning_rate": rate, "noise_level": 0.8}
        for name in ("awm", "tempflow")
        for rate, accuracy in ((2e-4, 0.6), (4e-4, 0.7), (8e-4, 0.3))
    ]
    awm, tempflow = Design(methods=("awm", "tempflow")).second_tuning(results)
    assert (awm.method, awm.learning_rate, awm.noise_level) == ("awm", 2.8e-4, 0.8)
    assert (tempflow.method, tempflow.learning_rate, tempflow.noise_level) == ("tempflow", 4e-4, 0.5)


def test_every_method_gets_the_same_tuning():
    plans = Design().first_tuning()
    of_each = {name: [plan for plan in plans if plan.method == name] for name in COMPETITORS}
    assert {len(each) for each in of_each.values()} == {len(Design().learning_rates)}
    for plan in plans:
        config = plan.config()
        spent = config.run.num_iterations * evaluations_of(config)
        assert spent == pytest.approx(plan.budget, rel=0.05)


def test_a_spread_that_some_iterations_lack_is_a_mean_of_the_others(tmp_path):
    """A drawn step may have no trajectory; the first iteration may be the one."""
    plan = Design().first_tuning()[0]
    run = tmp_path / plan.name
    (run / "evaluations/000002").mkdir(parents=True)
    scores = {"overall": {"accuracy": 0.5, "reward": 0.5}}
    (run / "evaluations/000002/scores.json").write_text(json.dumps(scores))
    rows = [{"iteration": 1}, {"iteration": 2, "group_std_step_1": 0.25}]
    rows = [{**row, "seconds": 1.0, "num_row_evaluations": 10.0} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert plan.result(tmp_path)["metrics"] == {"group_std_step_1": 0.25}


def test_a_run_that_diverged_counts_as_nothing_from_there(tmp_path):
    plan = Design().first_tuning()[0]
    run = tmp_path / plan.name
    (run / "evaluations/000000").mkdir(parents=True)
    scores = {name: {"accuracy": 0.5, "reward": 0.75} for name in ("overall", "colors")}
    (run / "evaluations/000000/scores.json").write_text(json.dumps(scores))
    (run / "metrics.jsonl").write_text(json.dumps({"iteration": 1, "seconds": 1.0, "num_row_evaluations": 10.0}) + "\n")
    found = plan.result(tmp_path, diverged=True)
    assert (found["iterations"], found["evaluations"], found["seconds"]) == ([0, 1], [0.0, 10.0], [0.0, 1.0])
    assert (found["accuracy"], found["reward"], found["tasks"]) == ([0.5, 0.0], [0.75, 0.0], {"colors": [0.5, 0.0]})


def test_no_reported_seed_or_noise_is_tuned_on():
    design = Design()
    assert not {*design.tuning_seeds} & {*design.seeds}
    tuning = {plan.eval_seed for plan in design.first_tuning()}
    assert tuning == {7}
    known = [curve(101, 0.5, 0.6, method=name, stage="tuning") for name in COMPETITORS]
    assert {plan.eval_seed for plan in design.report(known)} == {0}


def test_a_longer_budget_continues_a_run_and_replaces_its_line(tmp_path):
    short = Design().first_tuning()[0]
    longer = replace(short, budget=10 * short.budget)
    assert longer.digest == short.digest
    assert longer.name == short.name
    path = tmp_path / "results.jsonl"
    add_result(path, {"digest": short.digest, "budget": short.budget})
    assert is_done(read_results(path), short)
    assert not is_done(read_results(path), longer)
    add_result(path, {"digest": short.digest, "budget": longer.budget})
    assert len(read_results(path)) == 1
    assert is_done(read_results(path), longer)


def test_runs_of_settings_that_another_tuning_chose_are_not_reported():
    runs = [curve(seed, 0.5, 0.6) for seed in (1, 2)] + [{**curve(1, 0.5, 0.9), "learning_rate": 2e-4}]
    assert reported([*runs, curve(1, 0.5, 0.7, method="awm")], "tempflow") == runs[2:]


def test_results_of_settings_that_have_changed_since_do_not_count(tmp_path):
    plan = Design().tuning("tempflow", 4e-4, 0.8)[0]
    now = {**asdict(plan), "digest": plan.digest}
    before = {**now, "seed": 1, "digest": "that of an older recipe"}
    gone = {**now, "method": "one of an older version", "digest": "that of its runs"}
    path = tmp_path / "results.jsonl"
    for each in (now, before, gone):
        add_result(path, each)
    assert current(read_results(path)) == [now]


def test_the_page_claims_nothing_with_few_seeds(tmp_path):
    page = tmp_path / "page.md"
    names = list(COMPETITORS)
    few = [curve(seed, 0.5, 0.9, method=name) for name in names for seed in (1, 2)]
    write_page(page, few, Design())
    assert "nothing is claimed" in page.read_text()
    write_page(page, [curve(seed, 0.5, 0.9, method=name) for name in names for seed in range(1, 6)], Design())
    assert "nothing is claimed" not in page.read_text()
    assert "| 2 of" not in page.read_text()


def test_the_page_says_what_is_proven_and_what_is_not(tmp_path):
    page, end = tmp_path / "page.md", {"tempflow": 0.8, "flow_grpo": 0.6, "tempflow_unweighted": 0.9}
    runs = [curve(seed, 0.5, end.get(name, 0.8), method=name) for name in COMPETITORS for seed in range(1, 6)]
    write_page(page, runs, Design())
    proven, opposite, rest = (part.split("**")[0] for part in page.read_text().split("**: ")[1:4])
    assert "TempFlow-GRPO over Flow-GRPO" in proven
    assert "weighting helps" in opposite
    assert "seed groups help" in rest


def test_the_page_says_how_many_times_our_cost_others_need(tmp_path):
    """Ours is at 0.6 after 50 evaluations, Flow-GRPO after 100; it never reaches 0.7, and counts as at its end."""
    runs = [curve(seed, 0.5, 0.7, method="tempflow_short") for seed in (1, 2)]
    runs += [curve(seed, 0.5, 0.6, 0.6, method="flow_grpo") for seed in (1, 2)]
    write_page(tmp_path / "page.md", runs, Design())
    line = next(each for each in (tmp_path / "page.md").read_text().splitlines() if "2 seeds)" in each)
    assert line == ("| Flow-GRPO | evaluations | 2.00x (2.00 to 2.00, 2 seeds) | at least 2.00x |")


def test_awm_moves_the_velocity_against_the_advantage_of_what_was_drawn():
    """With the velocity one number b, the loss of x0 and e is (b - e + x0)^2, so the first update follows
    2 mean(A (b - e + x0)), whatever the noise levels; e averages out, since advantages add up to 0 in a group."""
    policy = TinyPolicy()
    bias = torch.nn.Parameter(torch.tensor(0.3))
    policy.velocity = lambda latents, sigma, condition, scale=1.0: (bias.expand_as(latents), None)
    policy.parameters = lambda: [bias]
    latents = torch.randn(4000, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    advantages = latents.mean((1, 2, 3)) - latents.mean()
    config = tff.GRPOConfig(num_steps=2, num_updates=1, max_grad_norm=1e9, branch_steps=(0,))
    optimizer = torch.optim.SGD([bias], lr=1.0)
    awm.train(policy, policy.encode(["a"] * 4000), latents, advantages, optimizer, config, seed=0)
    expected = 2 * (advantages * latents.mean((1, 2, 3))).mean()
    assert 0.3 - bias.item() == pytest.approx(expected.item(), rel=0.15)


def test_awm_raises_what_it_is_rewarded_for():
    policy, rewards = TinyPolicy(), []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    config = tff.GRPOConfig(num_steps=4, num_seeds=24, num_branches=1, group="prompt", trunk="sde", clip_range=0.1)
    for seed in range(40):
        metrics = awm.awm_step(policy, PROMPTS, get_reward(brightness), optimizer, config, seed)
        rewards.append(float(metrics["reward_mean"]))
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5


@pytest.mark.slow
def test_a_toy_runs_to_its_page_and_repeats_nothing(tmp_path):
    command = [sys.executable, "-m", "bench.experiment", "--quick", "--output", str(tmp_path / "runs")]
    command += ["--page", str(tmp_path / "page.md"), "--jobs", "2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    assert "reported seeds: 0 of 2" in ran.stdout
    results = tmp_path / "page" / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {(line["method"], line["seed"]) for line in lines} == {(m, s) for m in QUICK.methods for s in QUICK.seeds}
    for line in lines:
        assert len(line["accuracy"]) == len(line["evaluations"]) >= 2
        assert line["evaluations"][-1] == pytest.approx(QUICK.budget, rel=0.25)
        assert line["work"][-1] > line["evaluations"][-1]
    assert "AWM" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "page.png").stat().st_size > 10_000
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    assert "reported seeds: 2 of 2" in again.stdout
    assert results.read_text().splitlines() == [json.dumps(line) for line in lines]
