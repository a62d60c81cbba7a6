"""A run whose cheap tails do not pass the gate says so, moves or drops them if asked, and resumes as it was."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from support.runs import go, tiny_config, untimed

from tempflow_fast.evaluation.evaluate import score
from tempflow_fast.run.prepare import prepare_policy

pytestmark = pytest.mark.slow

GATE = {"branch_steps": (0, 1, 2), "tail_steps": 1, "gate_every": 2, "gate_share": 1.0, "gate_bound": 1.0}
SENTENCE = "after 1 iterations: advantages after cheap tails have a cosine of "


def rows_of(run):
    return [row["num_row_evaluations"] for row in run.read_metrics()]


def test_below_the_bound_a_run_goes_back_to_full_tails_and_stays_there(tmp_path):
    settings = {**GATE, "gate_action": "full"}
    whole, said = go(tmp_path / "whole", tiny_config(**settings))
    assert [line.startswith(SENTENCE) for line in said].count(True) == 1
    assert any("full tails from here on" in line for line in said)
    trunk, short, full = 3 * 3, 3 * 3 * 2 * 1, 3 * 2 * (5 + 4 + 3)
    assert rows_of(whole) == [trunk + short + full, *[trunk + full] * 3]
    assert [("gate_cosine" in row) for row in whole.read_metrics()] == [True, False, False, False]
    go(tmp_path / "cut", tiny_config(**settings, num_iterations=2))
    cut, _ = go(tmp_path / "cut", tiny_config(**settings))
    assert untimed(cut) == untimed(whole)
    go(tmp_path / "cut", tiny_config(**{**settings, "tail_steps": 2}, num_iterations=6))  # longer ones get a chance
    assert rows_of(cut)[4:] == [trunk + 2 * short + full, trunk + full]


def test_a_warning_changes_nothing(tmp_path):
    run, said = go(tmp_path / "run", tiny_config(**GATE))
    assert [line.split(" iterations")[0] for line in said if "cosine" in line] == ["after 1", "after 3"]
    cheap, gate = 3 * 3 + 3 * 3 * 2, 3 * 2 * (5 + 4 + 3)
    assert rows_of(run) == [cheap + gate, cheap, cheap + gate, cheap]


def test_adaptive_tails_are_resumed_to_the_bit(tmp_path):
    settings = {**GATE, "tail_steps": "adaptive", "gate_bound": 0.5, "num_branches": 4, "num_iterations": 6}
    whole, said = go(tmp_path / "whole", tiny_config(**settings))
    lengths = [[row[f"tail_length_step_{step}"] for step in (0, 1, 2)] for row in whole.read_metrics()]
    assert lengths[0] == [3, 2, 2]
    assert lengths[0] != lengths[1] == lengths[2], "the first gate has moved them"
    moved = [line for line in said if "has tails of" in line]
    assert len(moved) == sum(a != b for before, after in pairwise(lengths) for a, b in zip(before, after, strict=True))
    go(tmp_path / "cut", tiny_config(**{**settings, "num_iterations": 3}))
    cut, _ = go(tmp_path / "cut", tiny_config(**settings))
    assert untimed(cut) == untimed(whole)
    go(tmp_path / "cut", tiny_config(**{**settings, "gate_bound": 0.4, "num_iterations": 7}))
    assert [cut.read_metrics()[-1][f"tail_length_step_{step}"] for step in (0, 1, 2)] == [3, 2, 2], "begun anew"


def test_chosen_levels_are_resumed_to_the_bit_and_kept(tmp_path, monkeypatch):
    settings = {**GATE, "tail_steps": "adaptive", "tail_levels": "nearest", "num_branches": 4, "num_iterations": 3}
    whole, _ = go(tmp_path / "whole", tiny_config(**settings))
    go(tmp_path / "cut", tiny_config(**{**settings, "num_iterations": 1}))
    with monkeypatch.context() as patch:
        patch.setattr("tempflow_fast.run.train.nearest_levels", None)  # they are in the checkpoint
        cut, _ = go(tmp_path / "cut", tiny_config(**settings))
    assert untimed(cut) == untimed(whole)
    uniform, _ = go(tmp_path / "uniform", tiny_config(**{**settings, "tail_levels": "uniform", "num_iterations": 1}))
    assert uniform.read_metrics()[0]["gate_cosine"] != whole.read_metrics()[0]["gate_cosine"], "they have an effect"


def test_evaluation_always_uses_the_full_sampler():
    config = tiny_config(eval_steps=None)
    policy = prepare_policy(config.policy)
    cheap = config.with_settings(**GATE, tail_levels="nearest", tail_solver="ab2", tail_precision="bf16")
    assert torch.equal(score(cheap, policy).measures["reward"], score(config, policy).measures["reward"])
