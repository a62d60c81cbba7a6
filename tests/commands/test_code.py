"""Code that only a file names does not run, unless the user allows it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tempflow_fast.cli import main
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.shapes import pipeline_path

TRAP = "trap_of_tests:steal"
FORMS = {
    "plain": {"reward": TRAP},
    "in a sum": {"reward": f"shapes=1.0, {TRAP}=0.5"},
    "JSON": {"reward": json.dumps({TRAP: 1.0})},
    "JSON with a name": {"reward": json.dumps({"shapes": {"reward": TRAP, "weight": 0.5}})},
    "accuracy": {"accuracy": TRAP},
    "policy": {"policy": TRAP},
}
COMMANDS = {
    "train": ["train", "--output", "run"],
    "dry run": ["train", "--output", "run", "--dry-run"],
    "another reward typed": ["train", "--output", "run", "--seed", "0", "--prompts", TRAP],
    "eval": ["eval", "--weights", "run"],
    "eval into a directory": ["eval", "--weights", "run", "--directory", "scores"],
    "signal": ["signal", "--weights", "run", "--output", "signal"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a module that leaves a file behind when it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "trap_of_tests", raising=False)
    (tmp_path / "trap_of_tests.py").write_text("open('ran', 'w').close()\nsteal = 'no function'\n")
    return tmp_path


def stored(**settings: object) -> None:
    RunDirectory("run").write_config(get_recipe("shapes").with_settings(**settings))


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
def test_code_in_a_run_directory_does_not_run(place, capsys, settings, arguments):
    stored(**settings)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"tempflow-fast {arguments[0]}: --allow-code must be given to run {TRAP!r}, which a file names: "
        "the settings in 'run', got no permission"
    )
    assert not (place / "ran").exists()


def test_a_policy_in_a_run_directory_does_not_run_to_draw(place, capsys):
    stored(policy=TRAP)
    assert main(["sample", "--weights", "run", "--prompt", "x", "--output", "x.png"]) == 2
    assert f"--allow-code must be given to run {TRAP!r}" in capsys.readouterr().err
    assert not (place / "ran").exists()


@pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["settings.json", "settings.yaml"])
def test_code_in_a_file_of_settings_does_not_run(place, capsys, settings, name):
    (place / name).write_text(get_recipe("shapes").with_settings(**settings).to_json())
    train = ["train", "--config", name, "--output", "new"]
    assert main(train) == 2
    assert capsys.readouterr().err.endswith(
        f"--allow-code must be given to run {TRAP!r}, which a file names: the settings in {name!r}, got no permission\n"
    )
    assert not (place / "ran").exists()
    assert main([*train, "--allow-code"]) == 2
    assert (place / "ran").exists()


@pytest.mark.parametrize("option", ["--policy", "--reward", "--recipe"])
def test_code_that_is_typed_over_a_file_runs(place, capsys, option):
    (place / "settings.json").write_text(get_recipe("shapes").with_settings(policy=TRAP).to_json())
    arguments = [] if option == "--policy" else ["--policy", "None"]
    assert main(["train", "--config", "settings.json", "--output", "new", option, TRAP, *arguments]) == 2
    assert "--allow-code" not in capsys.readouterr().err
    assert (place / "ran").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--allow-code"],
        ["--reward", TRAP],  # the command line of the first start
        [f"--reward={TRAP}", "--iterations", "3"],
        ["--recipe", "shapes", "--reward", TRAP],
    ],
    ids=" ".join,
)
def test_code_that_is_allowed_or_typed_runs(place, capsys, arguments):
    stored(reward=TRAP)
    assert main(["train", "--output", "run", *arguments]) == 2
    assert "reward must be a callable or a class of one" in capsys.readouterr().err
    assert (place / "ran").exists()


def test_typing_one_name_does_not_allow_another(place, capsys):
    stored(reward="shapes", accuracy=TRAP)
    assert main(["train", "--output", "run", "--reward", "shapes"]) == 2
    assert "--allow-code" in capsys.readouterr().err
    assert not (place / "ran").exists()


def test_rewards_that_are_not_asked_for_are_no_matter(place, capsys):
    """`eval --rewards` replaces those of the run; `sample` needs none."""
    stored(reward=TRAP)
    assert main(["eval", "--weights", "run", "--rewards", "shapes"]) == 2
    assert main(["sample", "--weights", "run", "--prompt", "x", "--output", "x.png"]) == 2
    assert all("where training has not ended" in line for line in capsys.readouterr().err.splitlines())
    assert not (place / "ran").exists()


@pytest.mark.parametrize("command", ["sample", "train"])
def test_code_in_a_model_directory_does_not_run(place, capsys, command):
    """`allow_code` of load_policy is tested with the policies."""
    shutil.copytree(pipeline_path(), place / "model")
    index = json.loads((place / "model" / "model_index.json").read_text())
    changed = {**index, "transformer": ["trap_of_tests", "Transformer"]}
    (place / "model" / "model_index.json").write_text(json.dumps(changed))
    for folder in (place / "model", place / "model" / "transformer"):
        shutil.copy(place / "trap_of_tests.py", folder)
    output = {"sample": ["--prompt", "x", "--output", "x.png"], "train": ["--recipe", "shapes", "--output", "out"]}[
        command
    ]
    assert main([command, "--model", "model", *output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "allow_code lets it run" in line
    assert not (place / "ran").exists()


def test_code_in_a_data_set_does_not_run(place, capsys):
    """Older versions of `datasets` ran the script that has the name of its directory."""
    (place / "trap_of_tests").mkdir()
    shutil.copy(place / "trap_of_tests.py", place / "trap_of_tests")
    assert main(["train", "--output", "out", "--prompts", "hf:trap_of_tests"]) == 2
    assert "'trap_of_tests'" in capsys.readouterr().err
    assert not (place / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "numpy", "json", "tyro", "PIL", "matplotlib"])
def test_modules_in_the_working_directory_do_not_replace_libraries(place, name):
    """Such as those of a directory that was downloaded, under `python -m tempflow_fast`."""
    (place / f"{name}.py").write_text("open('ran', 'w').close()\nraise SystemExit(7)\n")
    command = [sys.executable, "-m", "tempflow_fast", "sample", "--prompt", "x", "--output", "no/x.png", "--count", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "tempflow-fast sample: --count must be >= 1, got 0\n")
    assert not (place / "ran").exists()
