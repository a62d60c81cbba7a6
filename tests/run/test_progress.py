"""The limits of a run, and its progress bar."""

from __future__ import annotations

import time

import pytest

from tempflow_fast.run.progress import Budget, ProgressBar


def test_the_bar_shows_the_progress_of_a_run(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    budget, bar = Budget(num_iterations=4, minutes=None), ProgressBar()
    metrics = {"log_ratio_rms": 4.3e-4, "clip_fraction": 0.25, "seconds_rollout": 1.4, "seconds_train": 0.6}
    for num_done, reward in ((1, 0.5), (2, 0.7)):
        with budget.running():
            clock[0] += 60.0
        budget.num_done = num_done
        bar.show(budget, {**metrics, "reward_mean": reward, "seconds_encode": 1e-3})
    bar.close()
    last = capsys.readouterr().err.rsplit("training", 1)[1]
    for words in (" 50% ", "iteration 2", "02:00<02:00", "reward 0.520", "ratio spread 4.3e-04", "clipped 0.25"):
        assert words in last
    assert last.rstrip().endswith("2 s: rollout 1.4, train 0.6")


def test_budget_ends_at_the_first_limit(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    budget = Budget(num_iterations=10, minutes=1.0, num_done=1, seconds=4.0)
    with budget.running():
        budget.num_done, clock[0] = 2, 2.0
        assert budget.fraction == pytest.approx(0.2)
        assert budget.remaining == pytest.approx(24.0)
        clock[0] = 26.0
        assert budget.fraction == pytest.approx(0.5)
    clock[0] = 1000.0
    assert budget.seconds == 30.0, "only the time inside counts"
    budget.num_done = 10
    assert budget.fraction == 1.0
    assert Budget(None, None, num_done=5, seconds=9.0).fraction == 0.0
