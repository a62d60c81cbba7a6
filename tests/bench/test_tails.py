"""The table of tails: full tails have no distance, shorter ones cost less; guidance counts twice; figures are kept."""

from __future__ import annotations

import json

import pytest

from bench import equal_signal, tails
from bench.networks import SMALL
from bench.tails import nearness, random_network, table


@pytest.fixture(scope="module")
def case():
    return random_network(SMALL, 2, (4, 6))


def test_distances_and_costs(case):
    full, short = nearness(case, {"full": {"tail_steps": (5, 3)}, "short": {"tail_steps": 1}})
    rows = full + short
    assert [row.evaluations for row in rows] == [6 * 5, 6 * 3, 6, 6]
    assert [row.distance for row in full] == pytest.approx([0, 0])
    assert [row.cosine for row in full] == pytest.approx([1, 1])
    assert all(row.distance > 1e-3 for row in short)
    assert short[0].cosine < 1
    assert table(rows).splitlines()[0] == "| tail | step 4 | step 6 |"


def test_guidance_counts_twice(case):
    guided = {"guidance_scale": 3.0}
    everywhere, nowhere = nearness(case, {"all": guided, "none": {**guided, "tail_guidance": (1.0, 1.0)}})
    rows = everywhere + nowhere
    assert [row.evaluations for row in rows] == [2 * 6 * 5, 2 * 6 * 3, 6 * 5, 6 * 3]


def test_an_interrupted_measurement_resumes_with_the_first_missing_option(case, tmp_path, monkeypatch):
    options = {"2 steps": {"tail_steps": 2}, "1 step": {"tail_steps": 1}}
    monkeypatch.setattr(tails, "GUIDED", {"no guidance": {"tail_guidance": (1.0, 1.0)}})
    monkeypatch.setattr(tails, "OPTIONS", options | {"broken": {"tail_steps": 0}})
    output = tmp_path / "tails.json"
    with pytest.raises(ValueError, match="tail_steps"):
        tails.measured(case, {"prompts": 2}, output)

    done, drawn = [], tails._acted
    monkeypatch.setattr(tails, "OPTIONS", options | {"full": {}})
    monkeypatch.setattr(tails, "_acted", lambda case, config: done.append(config) or drawn(case, config))
    found = tails.measured(case, {"prompts": 2}, output)
    assert [row.option for row in found[""][::2]] == ["2 steps", "1 step", "full"]
    assert len(done) == 2 + 2  # the full tails and the missing option, without and with guidance

    monkeypatch.setattr(tails, "_acted", None)  # nothing is missing
    assert tails.measured(case, {"prompts": 2}, output) == found
    with pytest.raises(ValueError, match="--output must be figures of"):
        tails.measured(case, {"prompts": 3}, output)


def test_half_of_the_signal_in_half_of_the_time_is_no_gain(monkeypatch):
    def takes(seconds):
        return lambda *arguments: clock.append(clock[-1] + seconds)

    clock = [0.0]
    monkeypatch.setattr(equal_signal.time, "process_time", lambda: clock[-1])
    monkeypatch.setattr(equal_signal.paper, "iteration", takes(8.0))
    monkeypatch.setattr(equal_signal, "grpo_step", takes(4.0))
    report = {
        "settings": [
            {"name": "num_updates=1", "relative": {"value": 1.0, "error": 0.0}},
            {"name": "branch_steps=[1]", "relative": {"value": 0.5, "error": 0.1}},
            {"name": "trunk=sde", "relative": {"value": 0.1, "error": 0.1}},
        ]
    }
    rows = equal_signal.timed(json.loads(json.dumps(report)), 2, 3)
    assert [row.seconds for row in rows] == [8, 4, 4]
    assert [row.speedup for row in rows] == [1, 2, 1]
    assert "| branch_steps=[1] | 4.00 | 0.50 +- 0.1 | 1.0 |" in equal_signal.table(rows)
