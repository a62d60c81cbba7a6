"""What the README says to type works: each command is run here on a small scale, or by CI unchanged.

Its program that trains is run by test_snippets.py."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from support import ROOT
from support.runs import OPTIONS

from tempflow_fast.cli import main

README = (ROOT / "README.md").read_text()
BLOCKS = {
    language: re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for language in ("bash", "python")
}
COMMANDS = [line for block in BLOCKS["bash"] for line in block.splitlines()]
OURS = [line for line in COMMANDS if line.startswith("tempflow-fast ")]


def run(command: str) -> str:
    """Runs a command of the package on a small scale; returns what it printed."""
    arguments = shlex.split(command)[1:]
    if arguments[0] == "train":
        arguments += ["--iterations", "1", *OPTIONS]
    if arguments[0] == "eval":
        arguments = [word for word in arguments if word not in ("--images", "600")] + ["--images", "12"]
    if arguments[0] == "signal":
        arguments = ["3" if word == "12" else word for word in arguments] + ["--prompts-per-iteration", "2"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(arguments) == 0, command
    return out.getvalue()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Where all commands have run in the order of the README: later ones use what earlier ones wrote."""
    directory = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for command in OURS:
            assert run(command), command
    return directory


def test_every_command_is_of_a_kind_that_is_run():
    programs = {shlex.split(command)[0] for command in COMMANDS}
    assert programs == {"make", "tempflow-fast", "pip"}


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in OURS])
def test_command_is_run_by_ci(command):
    """Perhaps with options between its words, so that it leaves nothing behind or ends sooner."""
    pattern = "( .*)? ".join(map(re.escape, shlex.split(command)))
    assert re.search(rf"\b{pattern}(\s|$)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", OURS)
def test_command_writes_what_it_says(command, workplace):
    for name in re.findall(r"--output (\S+)", command):
        assert (workplace / name).exists()


def python_block(word: str) -> str:
    (block,) = [block for block in BLOCKS["python"] if word in block]
    return block


def test_tuned_model_loads_in_diffusers(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names = {}
    exec(python_block("StableDiffusion3Pipeline"), names)
    assert names["image"].size == (24, 24)


def test_example_is_short():
    lines = [
        line for line in python_block("grpo_step").splitlines() if line and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 12


def test_pictures_are_there():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / name).is_file(), name
