"""Adaptive tails: how the cosines of a gate move their lengths."""

from __future__ import annotations

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.grpo.lengths import HOLD, TailLengths

ADAPTIVE = GRPOConfig(num_steps=10, branch_steps=(1, 5, 8), tail_steps="adaptive", gate_every=1, gate_bound=0.6)
HIGH, MIDDLE, LOW = 0.8, 0.7, 0.5


def gate(*cosines):
    return {f"gate_cosine_step_{step}": cosine for step, cosine in zip((1, 5, 8), cosines, strict=True)}


def lengths_after(*cosines, start=None):
    """The lengths of step 1 after gates."""
    tails = TailLengths() if start is None else TailLengths({1: start, 5: 1, 8: 1}, {1: 0, 5: 0, 8: 0})
    found = []
    for cosine in cosines:
        tails.note(ADAPTIVE, gate(cosine, MIDDLE, MIDDLE))
        found.append(tails.lengths[1])
    return found


def test_tails_start_with_half_of_the_rest():
    assert ADAPTIVE.tail_lengths == ((1, 4), (5, 2), (8, 1))
    assert TailLengths().applied(ADAPTIVE) is ADAPTIVE


@pytest.mark.parametrize(
    ("cosines", "lengths"),
    [
        ([HIGH] * 4, [2, 1, 1, 1]),
        ([MIDDLE] * 4, [4, 4, 4, 4]),
        ([LOW] * 3, [6, 8, 8]),
        ([HIGH, LOW, MIDDLE], [2, 3, 3]),
    ],
)
def test_a_gate_halves_a_good_tail_and_lengthens_a_bad_one(cosines, lengths):
    assert lengths_after(*cosines) == lengths


def test_after_a_tail_was_too_short_no_shorter_one_is_tried_for_a_while():
    assert lengths_after(LOW, *[HIGH] * (HOLD + 1), start=2) == [3] * (HOLD + 1) + [2]


def test_steps_move_on_their_own_and_those_without_a_cosine_stay():
    tails = TailLengths()
    moves = tails.note(ADAPTIVE, {"gate_cosine_step_1": LOW, "gate_cosine_step_5": HIGH})
    assert [move[:3] for move in moves] == [(1, 4, 6), (5, 2, 1)]
    assert tails.applied(ADAPTIVE).tail_lengths == ((1, 6), (5, 1), (8, 1))
    assert tails.note(ADAPTIVE, {"reward_mean": 1.0}) == []
    assert [move[:3] for move in tails.note(ADAPTIVE, gate(MIDDLE, MIDDLE, LOW))] == [(8, 1, 1)], "at its full length"


def test_full_tails_are_a_table_like_others():
    tails = TailLengths({1: 8, 5: 4, 8: 1}, {1: HOLD, 5: 0, 8: 0})
    assert tails.applied(ADAPTIVE).tail_steps == (8, 4, 1)
    assert TailLengths.from_json(tails.as_json()) == tails


def test_other_branch_steps_begin_anew():
    tails = TailLengths({1: 8, 5: 4}, {1: 0, 5: 0})
    assert tails.applied(ADAPTIVE) is ADAPTIVE
    tails.note(ADAPTIVE, gate(MIDDLE, MIDDLE, MIDDLE))
    assert tails.lengths == {1: 4, 5: 2, 8: 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate_every": None}, "tail_steps must be a number, a table or None without gate_every"),
        ({"gate_action": "full"}, "gate_action must be 'warn' with adaptive tails"),
        ({"tail_steps": "adaptiv"}, "tail_steps"),
    ],
)
def test_what_adaptive_tails_need(settings, message):
    known = {"num_steps": 10, "tail_steps": "adaptive", "gate_every": 5}
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**{**known, **settings})


def test_iterations_follow_their_gates():
    config = GRPOConfig(num_steps=6, num_branches=3, num_seeds=2, tail_steps="adaptive", gate_every=1, gate_share=1.0)
    policy, tails, rows = TinyPolicy(torch.float64), TailLengths(), []
    for seed in range(3):
        now = tails.applied(config)
        metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy, 1e-3), now, seed)
        cost = Geometry(now, len(PROMPTS))
        assert int(metrics["num_row_evaluations"]) == cost.rollout_rows + cost.gate[0]
        rows.append(cost.rollout_rows)
        tails.note(config, {name: float(value) for name, value in metrics.items()})
    assert rows[0] > rows[1] > rows[2], "this policy's tails keep the order however short they are"


def test_the_summary_says_how_far_tails_can_move():
    config = GRPOConfig(num_steps=10, branch_steps=(1, 2), num_branches=6, tail_steps="adaptive", gate_every=5)
    assert "15 evaluations with one call, 93 in full" in str(Geometry(config, 4))
