"""The command line: what it writes and prints, and its errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import ROOT
from support.runs import OPTIONS

import tempflow_fast
from tempflow_fast.cli import _parse, main
from tempflow_fast.commands import COMMANDS
from tempflow_fast.evaluation.result import Evaluation, Noise
from tempflow_fast.prompts.sets import get_prompts
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.report import closing_lines
from tempflow_fast.run.train import Trained
from tempflow_fast.settings.recipes import RECIPES, get_recipe
from tempflow_fast.settings.run import TrainConfig
from tempflow_fast.shapes.prompts import TASKS

OUTPUT = ["--output", "out"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tempflow-fast {tempflow_fast.__version__}\n"


def plain(text: str) -> str:
    """Boxed text without its box and line breaks."""
    return " ".join(re.sub("[╭╮╰╯│─]", " ", text).split())


def test_help_lists_every_setting_with_its_default(capsys):
    texts = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        texts[command] = plain(capsys.readouterr().out)
        assert texts[command].startswith(f"usage: tempflow-fast {command}")
        assert plain(COMMANDS[command].__doc__).split(".")[0] in texts[command]
    shapes = get_recipe("shapes").flat()
    assert len(shapes) > 50
    missing = [name for name in shapes if f"--{name.replace('_', '-')} " not in texts["train"].replace(",", " ")]
    assert missing == []
    assert "Side of square images in pixels" in texts["train"]
    default = f"(default: {shapes['learning_rate']})"
    assert f"--learning-rate FLOAT Learning rate after the warm-up and before the decay. {default}" in texts["train"]
    assert set(re.findall(r" (--\w+)", texts["sample"])) >= {"--model", "--weights", "--prompt", "--count", "--output"}
    assert set(re.findall(r" (--\w+)", texts["eval"])) >= {"--model", "--weights", "--images", "--seed", "--output"}


def test_the_page_on_training_names_options_and_recipes_that_exist(capsys):
    page = (ROOT / "docs" / "training.md").read_text()
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    ours = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) | {"--help"}
    assert set(re.findall(r"--[a-z][a-z_-]+", page)) - ours == set()
    recipes = page.partition("\n## Recipes\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", recipes, re.MULTILINE)) == set(RECIPES)


def test_every_setting_says_what_it_is():
    """The text under a field is its only documentation, on the command line and in the code."""
    import inspect
    from dataclasses import fields

    groups = {type(getattr(get_recipe("shapes"), item.name)) for item in fields(TrainConfig)}
    for group in groups:
        source = inspect.getsource(group)
        for item in fields(group):
            assert re.search(rf'^    {item.name}: .*\n    """', source, re.MULTILINE), item.name


def test_recipes_are_listed_with_their_sources(capsys):
    assert main(["recipes"]) == 0
    sections = capsys.readouterr().out.split("\n\n")
    text = "\n\n".join(sections)
    for name, recipe in RECIPES.items():
        assert f"\n{name}\n" in f"\n{text}"
        assert "Source: " in recipe.__doc__, name
        assert TrainConfig.from_json(recipe().to_json()) == recipe()
    for line in ("lora_rank = 32", "ema_decay = 0.9", "beta = 0.004", "eval_steps = 40", "guidance_scale = 4.5"):
        assert line in text[text.index("sd35m-geneval") : text.index("sd35m-pickscore")]


def test_the_command_line_answers_before_torch_is_loaded():
    for arguments in (["train", "--help"], ["recipes"], ["train", "--output", "x", "--nope", "1"]):
        code = f"""
import sys
from tempflow_fast.cli import _parse, main
from tempflow_fast.commands import COMMANDS
try: main({arguments!r})
except SystemExit: pass
sys.exit(3 if "torch" in sys.modules else 0)
"""
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0, arguments


def test_a_limit_on_the_command_line_replaces_those_of_the_recipe(workplace):
    def limits(*arguments: str) -> tuple[object, object]:
        run = _parse(["train", *OUTPUT, *arguments]).settings.run
        return run.num_iterations, run.minutes

    recipe = get_recipe("shapes").run
    assert limits() == (recipe.num_iterations, recipe.minutes)
    assert limits("--minutes", "4") == (None, 4.0)
    assert limits("--iterations", "7") == limits("--num-iterations=7") == (7, None)
    assert limits("--minutes", "4", "--iterations", "7") == (7, 4.0)


def test_a_run_directory_has_its_own_settings(workplace):
    RunDirectory("used").write_config(get_recipe("flux-hps").with_settings(seed=5))
    settings = _parse(["train", "--output", "used", "--num-seeds", "3"]).settings
    assert (settings.task.seed, settings.grpo.num_seeds, settings.policy.resolution) == (5, 3, 1024)
    assert _parse(["train", "--output", "used", "--recipe", "shapes"]).settings == get_recipe("shapes")


@pytest.mark.slow
def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "tempflow_fast", "info"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tempflow_fast.info()}\n"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ([1, 1, 1, 1], ["Improved: strict accuracy on 4", "0.500 -> 1.000", "+0.500 +- 0.000", "most in b (+1.000)"]),
        ([1, 0, 0, 0], ["Not improved", "0.500 -> 0.250", "-0.250 +- 0.250", "least in a (-0.500)"]),
        ([0, 0, 1, 1], ["Unchanged: strict", "0.500 -> 0.500"]),
        (None, ["Scored before training only"]),
    ],
)
def test_closing_lines(after, words):
    def scores(right):
        metadata = [{"tag": tag, "prompt": "x"} for tag in "aabb"]
        right = torch.tensor(right, dtype=torch.float64)
        measures = {"accuracy": right, "reward": right / 2}
        return Evaluation(("a", "b"), metadata, measures, torch.zeros(0, 3, 8, 8), Noise(0, (1,)))

    trained = Trained(scores([1, 1, 0, 0]), scores(after) if after else None, num_iterations=3, seconds=12.0)
    text = closing_lines(trained, Path("runs/x"))
    assert [word for word in words if word not in text] == []
    assert len(text.splitlines()) == 3
    next_line = "Next: tempflow-fast sample --weights runs/x --prompt x --output samples.png"
    assert text.splitlines()[-1] == next_line
    assert closing_lines(trained, Path("runs/x"), "my_policy:Mine").splitlines()[-1] == f"{next_line} --allow-code"


def test_sample_depends_only_on_the_seed(workplace):
    def picture(name: str, *more: str) -> Image.Image:
        prompts = ["--prompt", "a photo of a red circle", "--prompt", "seven tall giraffes"]
        assert main(["sample", *prompts, "--count", "2", "--output", name, *more]) == 0
        return Image.open(name)

    first, again, other = picture("a.png"), picture("b.png"), picture("c.png", "--seed", "1")
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert first.width > 4 * 192


@pytest.mark.slow
def test_an_adapter_of_the_embedded_model_is_trained_and_drawn(workplace, capsys):
    assert main(["train", "--output", "run", "--lora-rank", "4", "--iterations", "1", *OPTIONS]) == 0
    assert (workplace / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert main(["sample", "--weights", "run", "--prompt", "x", "--count", "1", "--output", "x.png"]) == 0
    assert Image.open("x.png").width > 0


def test_eval_prints_and_writes_the_table(workplace, capsys):
    assert main(["eval", "--images", "12", "--output", "scores/eval.json"]) == 0
    table = json.loads((workplace / "scores" / "eval.json").read_text())
    lines = capsys.readouterr().out.splitlines()[1:]
    assert list(table) == [*TASKS, "overall"] == [line.split()[0] for line in lines]
    assert all(table[task]["num_images"] == 2 for task in TASKS)
    assert table["overall"]["accuracy"] == pytest.approx(sum(table[task]["accuracy"] for task in TASKS) / 6)
    assert lines[-1].split()[1:] == ["12", f"{table['overall']['accuracy']:.3f}", f"{table['overall']['reward']:.3f}"]


@pytest.mark.parametrize(("trained", "count"), [("mine.txt", 1), ("shapes", 1), ("gone.txt", 0), (None, 0)])
def test_eval_counts_the_prompts_that_its_run_has_trained_on(workplace, recwarn, trained, count):
    """Not those of the packaged training set, which the run has never seen; without --weights there is no run."""
    known = get_prompts("shapes").everything()[0][0]["prompt"]
    Path("mine.txt").write_text("a cat\na dog\n")
    Path("judge.txt").write_text(f"{known}\nA  dog\n")
    weights = []
    if trained is not None:
        Path("run").mkdir()
        RunDirectory("run").write_config(get_recipe("shapes").with_settings(prompts=trained, eval_prompts="judge.txt"))
        weights = ["--weights", "run"]
    assert main(["eval", *weights, "--prompts", "judge.txt"]) == 2  # nothing was trained, and no reward knows a cat
    said = [str(each.message) for each in recwarn if "trained on" in str(each.message)]
    assert said == count * ["1 of 2 prompts for evaluation are also trained on"]
