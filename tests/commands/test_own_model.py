"""A model, prompts and a reward of one's own, without a recipe: which settings hold, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.pipelines import sd3_pipeline

from tempflow_fast.cli import _parse, main
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.settings.run import TrainConfig

OWN = ["--model", "model", "--prompts", "prompts.txt", "--reward", "mine:red"]
SMALL = ["--num-seeds", "2", "--num-branches", "2", "--iterations", "1", "--device", "cpu", "--trackers"]
SMALL += ["--branch-steps", "1", "4", "--eval-steps", "4"]
CODE = "def red(images, prompts, metadata):\n    return images[:, 0].mean((1, 2))\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """What somebody has who begins: a model, prompts and a reward."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    (tmp_path / "prompts.txt").write_text("".join(f"a photo of {number} cats\n" for number in range(12)))
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def settings(*arguments: str) -> TrainConfig:
    return _parse(["train", "--output", "out", *arguments]).settings


def test_the_settings_are_those_of_the_family(place):
    found = settings(*OWN)
    assert (found.policy.model, found.policy.device, found.policy.precision) == ("model", "auto", "bf16")
    assert (found.policy.lora_rank, found.policy.resolution) == (32, None)
    assert (found.task.prompts, found.task.reward, found.task.accuracy) == ("prompts.txt", "mine:red", None)
    assert (found.task.eval_prompts, found.evaluation.eval_images) == (None, None)
    assert (found.grpo.guidance_scale, found.grpo.sigmas, found.evaluation.eval_steps) == (7.0, None, 28)
    assert settings(*OWN, "--guidance-scale", "2").grpo.guidance_scale == 2.0


@pytest.mark.parametrize("missing", ["--prompts", "--reward"])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_what_only_the_user_knows_is_asked_for(place, capsys, missing, command):
    names = {"train": OWN, "eval": [*OWN[:4], "--rewards", *OWN[5:]]}[command]
    option = "--rewards" if (missing, command) == ("--reward", "eval") else missing
    at = names.index(option)
    output = ["--output", "out"] if command == "train" else []
    assert main([command, *names[:at], *names[at + 2 :], *output]) == 2
    expected = f"tempflow-fast {command}: {option} must be given with a model that no recipe names, got none\n"
    assert capsys.readouterr().err == expected


def test_help_needs_neither(place, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "model", "--help"])
    assert "(default: 7.0)" in capsys.readouterr().out


def test_a_recipe_and_the_packaged_model_stay_what_they_are(place):
    assert settings() == settings("--model", "embedded") == get_recipe("shapes")
    with_recipe = settings("--recipe", "sd35m-pickscore", "--model", "model")
    assert with_recipe == get_recipe("sd35m-pickscore").with_settings(model="model")


def test_prompts_replace_both_sources_of_a_recipe_but_not_of_a_run(place):
    task = settings("--recipe", "sd35m-pickscore", "--prompts", "prompts.txt").task
    assert (task.prompts, task.eval_prompts) == ("prompts.txt", None)
    RunDirectory("out").write_config(get_recipe("sd35m-pickscore").with_settings(prompts="prompts.txt"))
    assert settings("--prompts", "prompts.txt").task.eval_prompts == "dataset/pickscore/test.txt"


def test_options_override_a_file_and_a_file_the_family(place):
    text = "policy: {model: model}\ntask: {prompts: prompts.txt, reward: jpeg_compressibility}\ngrpo: {num_seeds: 5}\n"
    (place / "run.yaml").write_text(text)
    found = settings("--config", "run.yaml", "--reward", "mine:red", "--learning-rate", "1e-5")
    assert found == settings(*OWN, "--num-seeds", "5", "--learning-rate", "1e-5")
    other = settings("--config", "run.yaml", "--recipe", "flux-hps")
    assert other == get_recipe("flux-hps").with_settings(
        model="model", prompts="prompts.txt", reward="jpeg_compressibility", num_seeds=5
    )


def test_a_file_replaces_the_settings_of_the_run_in_the_directory(place):
    RunDirectory("out").write_config(get_recipe("shapes").with_settings(seed=5))
    (place / "run.json").write_text(get_recipe("shapes").with_settings(seed=7).to_json())
    assert settings("--config", "run.json").task.seed == 7
    assert settings("--config", "run.json", "--seed", "8").task.seed == 8


@pytest.mark.slow
def test_the_first_run_with_ones_own_model(place, capsys):
    sd3_pipeline(place / "tokenizer").save_pretrained("model")
    assert main(["train", "--output", "out", *OWN, *SMALL]) == 0
    before, _, _ = capsys.readouterr().out.partition("before training: ")
    lines = dict(line.split(maxsplit=1) for line in before.splitlines())
    assert list(lines) == ["model", "trained", "prompts", "iteration", "device", "output", "settings"]
    assert lines["model"].startswith("model by SD3Policy, ")
    assert "in float32, LoRA of rank 32, alpha 64, on " in lines["trained"]
    assert lines["prompts"] == "10 of prompts.txt, 2 held out; evaluation with 16 images"
    assert lines["iteration"].startswith("32 images of 4 prompts x 2 seeds, by 10 steps; reward mine:red")
    assert lines["device"].startswith("cpu, bf16, 1 process; ops ")
    assert lines["settings"].startswith("sd35m-pickscore, but ")
    assert "guidance_scale 7.0" in lines["settings"]
    assert Path("out/lora/pytorch_lora_weights.safetensors").is_file()
    assert main(["sample", "--weights", "out", "--prompt", "a cat", "--count", "1", "--output", "x.png"]) == 0
