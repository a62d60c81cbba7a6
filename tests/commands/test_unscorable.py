"""Prompts that a reward can never score are refused by the commands before the model is loaded or a file is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempflow_fast.cli import main
from tempflow_fast.policies import DiffusersPolicy

TRAIN = ["train", "--output", "run", "--prompts-per-iteration", "2"]
EVAL = ["eval", "--directory", "scores", "--images", "4"]
MODULE = """
class Picky:
    def __call__(self, images, prompts, metadata): return images.mean((1, 2, 3))
    def check_prompts(self, prompts, metadata):
        for prompt, entry in zip(prompts, metadata, strict=True):
            if "dog" in prompt or entry.get("kind") == "dog":
                raise ValueError(f"picky: prompt must be one without a dog, got {prompt!r}")
"""


def asked(kind: str, count: int = 1) -> dict:
    return {"prompt": f"{count} {kind}", "tag": "counting", "include": [{"class": kind, "count": count}]}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def load(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(DiffusersPolicy, "from_pretrained", load)
    Path("picky_reward.py").write_text(MODULE)
    good, bad = [asked("circle", count) for count in (1, 2, 3)], [asked("dog")]
    for name, entries in {"good": good, "bad": [*good, *bad], "many": [asked("circle", 9)]}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    Path("quoted.txt").write_text('a sign "one"\na sign "two"\n')
    Path("plain.txt").write_text('a sign "one"\na dog\n')
    return tmp_path


def refusal(arguments: list[str], capsys) -> str:
    before = sorted(Path().rglob("*"))
    assert main(arguments) == 2
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


SETS = {
    "to train on": [*TRAIN, "--prompts", "{bad}", "--eval-prompts", "{good}"],
    "held out": [*TRAIN, "--prompts", "{good}", "--eval-prompts", "{bad}"],
    "to evaluate with": [*EVAL, "--prompts", "{bad}"],
}
FORMS = ["{}", "{},jpeg_compressibility=1", "jpeg_compressibility=1,{}=0", '{{"mine": {{"reward": "{}", "cache": 9}}}}']
"""A reward alone, in a sum, logged alone, and with a cache."""


def command(name: str, reward: str, good: str, bad: str) -> list[str]:
    words = [word.format(good=good, bad=bad) for word in SETS[name]]
    return [*words, "--rewards", reward] if words[0] == "eval" else [*words, "--reward", reward, "--accuracy", reward]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SETS)
def test_what_the_judge_of_shapes_cannot_score(workplace, capsys, name, form):
    said = refusal(command(name, form.format("shapes"), "good.jsonl", "bad.jsonl"), capsys)
    assert "shapes: " in said
    assert "got 'dog'" in said


@pytest.mark.parametrize("name", SETS)
def test_a_reward_of_the_user_is_asked_about_prompts_and_metadata(workplace, capsys, name):
    said = refusal(command(name, "picky_reward:Picky", "quoted.txt", "plain.txt"), capsys)
    assert said.endswith("picky: prompt must be one without a dog, got 'a dog'")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SETS)
def test_prompts_that_quote_no_text(workplace, capsys, name, form):
    pytest.importorskip("rapidocr", reason="the ocr extra is not installed")
    said = refusal(command(name, form.format("ocr"), "quoted.txt", "plain.txt"), capsys)
    assert said.endswith(
        """ocr: prompt must be one that quotes a text in "..." or has one in its metadata, got 'a dog'"""
    )


def test_accuracy_is_asked_about_held_out_prompts(workplace, capsys):
    words = [*TRAIN, "--reward", "jpeg_compressibility", "--accuracy", "shapes_strict", "--prompts", "quoted.txt"]
    assert "from 1 to 5, got {'class': 'circle', 'count': 9}" in refusal(
        [*words, "--eval-prompts", "many.jsonl"], capsys
    )


@pytest.mark.parametrize("arguments", [TRAIN, EVAL], ids=["train", "eval"])
def test_prompts_that_can_be_scored_reach_the_model(workplace, arguments):
    option = "--rewards" if arguments is EVAL else "--reward"
    with pytest.raises(AssertionError, match="the model was loaded"):
        main([*arguments, option, "shapes", "--prompts", "good.jsonl"])
    if arguments is TRAIN:  # accuracy, here shapes_strict, never scores a prompt to train on
        with pytest.raises(AssertionError, match="the model was loaded"):
            main([*TRAIN, "--reward", "jpeg_compressibility", "--prompts", "plain.txt", "--eval-prompts", "good.jsonl"])
