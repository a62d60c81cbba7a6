"""A run with an adaptive budget moves its probabilities, and resumes as if it had never stopped."""

from __future__ import annotations

import json

import pytest
from support.runs import go, tiny_config, untimed

from tempflow_fast.run.numbered import latest_checkpoint

pytestmark = pytest.mark.slow

BUDGET = {"branch_steps": (0, 1, 2), "branches_per_trajectory": 1, "branch_budget": "adaptive", "budget_memory": 1.0}
BUDGET |= {"prompts_per_iteration": 4, "num_iterations": 5}


def budget(run):
    return json.loads((latest_checkpoint(run.checkpoints) / "state.json").read_text())["budget"]


def test_adaptive_numbers_of_branches_are_resumed_to_the_bit(tmp_path):
    settings = {**BUDGET, "branches_per_trajectory": None, "num_branches": 4, "num_iterations": 3}
    whole, _ = go(tmp_path / "whole", tiny_config(**settings))
    go(tmp_path / "cut", tiny_config(**{**settings, "num_iterations": 2}))
    cut, _ = go(tmp_path / "cut", tiny_config(**settings))
    assert untimed(cut) == untimed(whole)
    assert budget(cut) == budget(whole)
    assert set(budget(whole)["counts"].values()) != {4}, "they have moved"


def test_an_adaptive_budget_is_resumed_to_the_bit(tmp_path):
    whole, _ = go(tmp_path / "whole", tiny_config(**BUDGET))
    go(tmp_path / "cut", tiny_config(**{**BUDGET, "num_iterations": 3}))
    cut, _ = go(tmp_path / "cut", tiny_config(**BUDGET))
    assert untimed(cut) == untimed(whole)
    assert budget(cut) == budget(whole)
    assert budget(whole)["num_measured"] == 5
    assert {"signal_step_1", "noise_step_1"} <= whole.read_metrics()[-1].keys()
    fixed, _ = go(tmp_path / "fixed", tiny_config(**{**BUDGET, "branch_budget": None}))
    drawn = [[row["num_row_evaluations"] for row in run.read_metrics()] for run in (whole, fixed)]
    assert drawn[0][0] == drawn[1][0]
    assert drawn[0] != drawn[1], "the probabilities have moved"
