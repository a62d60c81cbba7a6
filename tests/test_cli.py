"""The command line: what it writes and prints, and how it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import tempflow_fast
from tempflow_fast.cli import main
from tempflow_fast.evaluate import Evaluation
from tempflow_fast.report import closing_lines
from tempflow_fast.shapes.prompts import TASKS
from tempflow_fast.train import Trained

OUTPUT = ["--output", "out"]
BAD = {
    "recipe": (["train", *OUTPUT, "--recipe", "nope"], "name must be one of shapes, got 'nope'"),
    "no value": (["train", *OUTPUT, "--set", "seed"], "name=value, got 'seed'"),
    "setting": (["train", *OUTPUT, "--set", "nope=1"], "got 'nope'"),
    "inner setting": (["train", *OUTPUT, "--set", "grpo.nope=1"], "num_branches"),
    "type": (["train", *OUTPUT, "--set", "grpo.num_branches=2.5"], "num_branches must be int, got 2.5"),
    "not JSON": (["train", *OUTPUT, "--set", "learning_rate=fast"], "learning_rate must be JSON, got 'fast'"),
    "range": (["train", *OUTPUT, "--minutes", "-1"], "minutes must be positive, got -1.0"),
    "reward": (["train", *OUTPUT, "--set", "reward=nope"], '"nope"'),
    "directory in use": (["train", "--output", "used"], "new or empty directory, got 'used'"),
    "model": (["sample", *OUTPUT, "--prompt", "x", "--model", "./nope"], "model must be 'embedded'"),
    "half a model": (["sample", *OUTPUT, "--prompt", "x", "--model", "used"], "model_index.json"),
    "empty prompt": (["sample", *OUTPUT, "--prompt", " "], "--prompt must say something, got ' '"),
    "count": (["sample", *OUTPUT, "--prompt", "x", "--count", "0"], "--count must be >= 1, got 0"),
    "file": (["sample", "--prompt", "x", "--count", "1", "--output", "used"], "directory"),
    "run": (["eval", "--weights", "used"], "config.json, got 'used'"),
    "images": (["eval", "--images", "0"], "eval_images must be >= 1, got 0"),
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    return tmp_path


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_argument_is_one_line(workplace, capsys, arguments, words):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith(f"tempflow-fast {arguments[0]}: ")
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "train"),
        (["train"], "--output"),
        (["train", *OUTPUT, "--minutes", "1", "--iterations", "1"], "not allowed with"),
        (["train", *OUTPUT, "--seed", "x"], "invalid int value: 'x'"),
    ],
)
def test_usage_error_names_what_was_expected(capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", {"--recipe", "--seed", "--output", "--minutes", "--iterations", "--set"}),
        ("sample", {"--model", "--weights", "--prompt", "--count", "--seed", "--output"}),
        ("eval", {"--model", "--weights", "--images", "--seed", "--output"}),
        ("info", set()),
    ],
)
def test_help_lists_the_options(capsys, command, options):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: tempflow-fast {command}")
    assert set(re.findall(r"^  (--\w+)", text, re.MULTILINE)) == options


def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "tempflow_fast", "info"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tempflow_fast.info()}\n"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ([1, 1, 1, 1], ["Improved: strict accuracy on 4", "0.500 -> 1.000", "+0.500 +- 0.250", "most in b (+1.000)"]),
        ([1, 0, 0, 0], ["Not improved", "0.500 -> 0.250", "-0.250", "least in a (-0.500)"]),
        (None, ["Scored before training only"]),
    ],
)
def test_closing_lines(after, words):
    def scores(right):
        metadata = [{"tag": tag, "prompt": "x"} for tag in "aabb"]
        right = torch.tensor(right, dtype=torch.float64)
        return Evaluation(("a", "b"), metadata, right, right / 2, images=torch.zeros(0, 3, 8, 8))

    trained = Trained(scores([1, 1, 0, 0]), scores(after) if after else None, num_iterations=3, seconds=12.0)
    text = closing_lines(trained, Path("runs/x"))
    assert [word for word in words if word not in text] == []
    assert len(text.splitlines()) == 3
    assert 'Next: tempflow-fast sample --weights "runs/x"' in text


def test_sample_depends_on_the_seed_alone(workplace):
    def picture(name: str, *more: str) -> Image.Image:
        prompts = ["--prompt", "a photo of a red circle", "--prompt", "seven tall giraffes"]
        assert main(["sample", *prompts, "--count", "2", "--output", name, *more]) == 0
        return Image.open(name)

    first, again, other = picture("a.png"), picture("b.png"), picture("c.png", "--seed", "1")
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert first.width > 4 * 192


def test_eval_prints_and_writes_the_table(workplace, capsys):
    assert main(["eval", "--images", "12", "--output", "scores/eval.json"]) == 0
    table = json.loads((workplace / "scores" / "eval.json").read_text())
    lines = capsys.readouterr().out.splitlines()[1:]
    assert list(table) == [*TASKS, "overall"] == [line.split()[0] for line in lines]
    assert all(table[task]["num_images"] == 2 for task in TASKS)
    assert table["overall"]["accuracy"] == pytest.approx(sum(table[task]["accuracy"] for task in TASKS) / 6)
    assert lines[-1].split()[1:] == ["12", f"{table['overall']['accuracy']:.3f}", f"{table['overall']['reward']:.3f}"]
