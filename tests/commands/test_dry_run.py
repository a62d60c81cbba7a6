"""What --dry-run says of a model whose weights are not there."""

from __future__ import annotations

import re

import pytest
from support import ROOT

from tempflow_fast.cli import main
from tempflow_fast.commands.cards import CARDS, UTILISATION
from tempflow_fast.commands.dry_run import Speed

RECIPE = ["train", "--recipe", "sd35m-geneval", "--output", "unused", "--dry-run"]


@pytest.mark.slow
def test_a_published_model_needs_no_weights_and_no_network(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main([*RECIPE, "--card", "h100", "--prompts-per-iteration", "6"]) == 0
    text = capsys.readouterr().out
    needed = float(re.search(r"in total +([\d.]+)", text)[1])
    assert re.search(r"^fits 80 GB: (yes|no), ([\d.]+) GiB$", text, re.MULTILINE)[1] == "yes"
    assert 10 < needed < 74
    assert "fits 24 GB" not in text
    hours = dict(re.findall(r"^(\S.*\S) +[\d.e+]+ +[\d.]+ min +([\d.e+]+) h for 3000 iterations$", text, re.MULTILINE))
    ours, paper, flow = (float(hours[name]) for name in ("tempflow-fast", "TempFlow-GRPO's scripts", "Flow-GRPO"))
    assert flow < ours < paper
    assert f"at {UTILISATION * CARDS['h100'].tflops:.4g} TFLOPS" in text
    assert "times Flow-GRPO's; every branch step gets images of its own" in text


def test_speeds_that_are_not_to_be_had_are_refused(capsys):
    assert Speed.of(None, None) is None
    assert Speed.of("h100", None).tflops == pytest.approx(395.6)
    assert Speed.of(None, 100.0).memory is None
    cases = {
        ("--dry-run", "--card", "h101"): "--card",
        ("--dry-run", "--card", "h100", "--tflops", "5"): "--tflops must be left out with --card",
        ("--dry-run", "--tflops", "0"): "--tflops must be positive and finite, got 0.0",
        ("--card", "h100"): "--card must be given with --dry-run, got h100",
    }
    for options, message in cases.items():
        assert main(["train", "--output", "unused", *options]) == 2
        assert message in capsys.readouterr().err


def test_the_docs_name_the_source_of_every_card():
    lines = (ROOT / "docs" / "training.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| `[\w-]+` \| \d+ \| \d+ \| ", line)]
    assert rows == [f"| `{name}` | {card.tflops:g} | {card.memory} | {card.source} |" for name, card in CARDS.items()]
