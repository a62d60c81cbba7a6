"""What a run would trip over late is refused before the model is loaded and before anything is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.runs import OPTIONS, go, tiny_config

from tempflow_fast.cli import main
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.processes import Processes
from tempflow_fast.rewards.ocr import _reader
from tempflow_fast.rewards.registry import _load
from tempflow_fast.run import checks
from tempflow_fast.run.lock import DirectoryLock

EARLY = {
    "more updates than trajectories": ("--num-updates 1000", "num_updates must be at most the"),
    "a branch step outside": ("--branch-steps 0 9", "branch_steps"),
    "a branch step twice": ("--branch-steps 0 0", "branch_steps"),
    "levels that rise": ("--num-steps 2 --sigmas 1.0 1.0 0.0 --branch-steps 0", "sigmas"),
    "levels for other steps": ("--num-steps 3 --sigmas 1.0 0.5 0.0 --branch-steps 0", "sigmas"),
    "no noise": ("--noise-level 0", "branch_steps"),
    "negative noise": ("--noise-level -1", "noise_level"),
    "noise that is no number": ("--noise-level nan", "noise_level"),
    "too many branches": ("--num-branches 100000", "num_branches must be at most 65536, got 100000"),
    "too many steps": ("--recipe sd35m-pickscore --model embedded --reward shapes --num-steps 100000", "must be"),
    "too many steps of evaluation": ("--eval-steps 100000", "must be"),
    "fp8 without hardware": ("--rollout-precision fp8", "kind must be supported by the device, got fp8 on cpu"),
    "fp8 tails without hardware": ("--tail-precision fp8", "kind must be supported by the device, got fp8 on cpu"),
    "8 bits without torchao": ("--rollout-precision int8", "pip install torchao", "torchao"),
    "an 8-bit optimizer": ("--optimizer adamw_8bit", "pip install bitsandbytes", "bitsandbytes"),
    "a reward of two arguments": ("--reward judge:two", "reward must be a function of (images, prompts, metadata)"),
    "a reward of four arguments": ("--reward judge:four", "missing a required argument: 'more'"),
    "an accuracy of two arguments": ("--accuracy judge:two", "reward must be a function of (images, prompts"),
    "no such reward": ("--reward judge:three", "judge"),
    "no engine for texts": ("--reward ocr", "rapidocr", "rapidocr"),
    "no prompts": ("--prompts none.txt", "'none.txt'"),
    "no prompts of evaluation": ("--eval-prompts none.txt", "'none.txt'"),
    "no library for data sets": ("--prompts hf:someone/prompts", "pip install datasets", "datasets"),
    "no such tracker": ("--trackers abacus", "'abacus'"),
    "a tracker that is not installed": ("--trackers wandb", "pip install wandb", "wandb"),
    "no such device": ("--device gpu", "one that torch can use here, got 'gpu'"),
    "no such model": ("--model ./none", "model must be 'embedded'"),
    "a model of another class": ("--model other --prompts shapes --reward shapes", "a FooPipeline"),
    "too long texts": ("--max-text-length 9999", "max_text_length must be in 1.."),
    "a file in the way": ("--output judge.py", "judge.py"),
    "a file above": ("--output judge.py/run", "in a directory that can be written, got '"),
    "a place that cannot be written": ("--output /proc/run", "in a directory that can be written, got '/proc'"),
}
"""What is wrong -> (options, words of the error, a library to do without)."""
LATER = {
    "a side that does not fit": ("--resolution 97", "resolution"),
    "no such layers": ("--lora-rank 2 --lora-targets nowhere", "nowhere"),
    "too little memory": ("--memory-limit 0.0001", "limit must be at least"),
}
JUDGE = """
def two(images, prompts): ...
def four(images, prompts, metadata, more): ...
"""
DEFAULTS = {
    "--output": ["run"],
    "--prompts-per-iteration": ["6"],
    "--eval-images": ["12"],
    "--num-branches": ["4"],
    "--branch-steps": ["0", "1"],
    "--trackers": [],
}
"""A little run."""


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)
    Path("other").mkdir()
    Path("other/model_index.json").write_text(json.dumps({"_class_name": "FooPipeline"}))
    return tmp_path


@pytest.fixture
def nothing_loads(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(DiffusersPolicy, "from_pretrained", load)


def refusal(options: str, capsys) -> str:
    """The error of a command that has to end with status 2, without its box."""
    defaults = [part for name, values in DEFAULTS.items() if name not in options for part in (name, *values)]
    before = files()
    try:
        status = main(["train", *defaults, *options.split()])
    except SystemExit as stop:  # an option that cannot be parsed
        status = stop.code
    assert status == 2
    assert files() == before, "something was written"
    printed = capsys.readouterr()
    assert "before training" not in printed.out
    return " ".join("".join(" " if letter in "╭╮╰╯│─" else letter for letter in printed.err).split())


def files() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path().rglob("*") if "__pycache__" not in str(path)}


@pytest.mark.parametrize("case", EARLY.values(), ids=EARLY)
@pytest.mark.usefixtures("nothing_loads")
def test_it_is_refused_before_the_model_is_loaded(workplace, capsys, monkeypatch, case):
    options, words, *missing = case
    for cached in (_load, _reader):  # another test may have loaded the engine
        cached.cache_clear()
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    assert words in refusal(options, capsys)


@pytest.mark.parametrize(("options", "words"), LATER.values(), ids=LATER)
def test_what_only_the_model_can_tell_is_refused_before_the_directory_is_made(workplace, capsys, options, words):
    assert words in refusal(options, capsys)


@pytest.mark.usefixtures("nothing_loads")
def test_a_directory_in_use_is_refused_before_the_model_is_loaded(workplace, capsys):
    with DirectoryLock(Path("run")):
        assert "one that no other process is writing, got 'run'" in refusal("", capsys)


@pytest.mark.slow
def test_a_change_that_a_run_cannot_make_is_refused_before_the_model_is_loaded(workplace, capsys, monkeypatch):
    go(Path("run"), tiny_config(num_iterations=1))
    with monkeypatch.context() as patch:
        patch.setattr(DiffusersPolicy, "from_pretrained", None)
        status = main(["train", "--output", "run", "--seed", "5"])
    assert status == 2
    assert "seed: 0 -> 5: choose another --output" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_loads")
def test_a_compiler_that_fails_is_noticed_before_the_model_is_loaded(workplace, capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(workplace / "with space"))
    checks._check_compiler.cache_clear()
    torch.compiler.reset()
    (workplace / "with space").mkdir()
    try:
        main(["train", "--output", "run", *OPTIONS, "--compile-blocks"])
    finally:
        checks._check_compiler.cache_clear()
    assert "compile_blocks must be False where torch.compile does not work, got True (" in capsys.readouterr().err
    assert not Path("run").exists()


def test_merged_weights_of_a_sharded_network_are_refused():
    processes = Processes()
    processes.shards = True
    with pytest.raises(ValueError, match="rollout_weights must be None or 'as trained' where FSDP shards the network"):
        checks.check_run(tiny_config().with_settings(rollout_weights="merged"), processes)


def test_every_optional_library_has_a_case():
    """An extra that is added to pyproject.toml belongs into the table."""
    text = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = {line.partition(" = ")[0] for line in text.splitlines() if " = [" in line}
    covered = {"8bit": "bitsandbytes", "quantized": "torchao", "datasets": "datasets", "ocr": "rapidocr"}
    elsewhere = {"tensorboard", "geneval"}  # the first is left out where it is missing; for the second, see its tests
    assert extras - {"test", "dev"} == covered.keys() | elsewhere
    assert set(covered.values()) <= {name for _, _, *missing in EARLY.values() for name in missing}


def test_prompts_that_are_trained_on_and_evaluated_with_are_counted(tmp_path):
    for name, lines in (("a.txt", "a cat\na dog\n"), ("b.txt", "A  cat\na fox\n")):
        (tmp_path / name).write_text(lines)
    files = {"prompts": str(tmp_path / "a.txt"), "eval_prompts": str(tmp_path / "b.txt")}
    config = tiny_config(**files, reward="jpeg_compressibility", accuracy=None)
    with pytest.warns(UserWarning, match="1 of 2 prompts for evaluation are also trained on"):
        checks.check_run(config, Processes())
