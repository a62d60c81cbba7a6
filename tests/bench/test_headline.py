"""The headline's two runs: its table, and a toy of the whole."""

from __future__ import annotations

import json

import pytest

from bench import headline


def curve(*accuracies: float) -> list[headline.Point]:
    """A look every 100 evaluations and 60 seconds."""
    return [
        {"evaluations": 100.0 * at, "seconds": 60.0 * at, "accuracy": value, "low": value - 0.1, "high": value + 0.1}
        for at, value in enumerate(accuracies)
    ]


def test_the_table_says_where_a_level_is_first_seen():
    table = headline.lines({"ours": curve(0.5, 0.75, 0.71, 0.8 - 1e-16), "theirs": curve(0.5, 0.6)})
    assert "| ours | 0.500 | 0.800 (0.700 to 0.900) | 300 | 3 | 100 | 300 | not reached |" in table
    assert "| theirs | 0.500 | 0.600 (0.500 to 0.700) | 100 | 1 | not reached | not reached | not reached |" in table


@pytest.mark.slow
def test_a_toy_of_it_is_run_and_drawn(tmp_path):
    (tmp_path / "long-runs.md").write_text("<!-- headline: written by make headline -->\n<!-- end of headline -->")
    headline.main(["--quick", "--output", str(tmp_path / "runs"), "--docs", str(tmp_path)])
    curves = json.loads((tmp_path / "headline.json").read_text())
    assert list(curves) == list(headline.ARMS)
    for before, after in curves.values():
        assert before["evaluations"] == 0 < after["evaluations"]
        assert 0 <= after["low"] <= after["accuracy"] <= after["high"] <= 1
    assert curves["this package"][0]["accuracy"] == curves["Flow-GRPO"][0]["accuracy"]
    assert curves["this package"][1]["evaluations"] != curves["Flow-GRPO"][1]["evaluations"]
    assert (tmp_path / "headline.png").stat().st_size > 10_000
    assert "| Flow-GRPO |" in (tmp_path / "long-runs.md").read_text()
