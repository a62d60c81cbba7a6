"""Where a command runs: terminals, pipes, homes and working directories that lack something."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.runs import OPTIONS

COMMAND = [sys.executable, "-m", "tempflow_fast"]
HARD = 'a “red” circle, 红色, $(touch ran), it\'s `x` & "y"'
"""A prompt that a terminal may not show, and that a shell would read as something else."""


def run(*arguments: str, cwd: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    given = {name: value for name, value in everything.items() if value is not None}
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, env=given, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_prompt_does_not_end_a_run(tmp_path):
    (tmp_path / "prompts.txt").write_text(
        f"{HARD}\n" * 1 + "".join(f"{HARD} {i}\n" for i in range(12)), encoding="utf-8"
    )
    arguments = ["train", "--output", "run", "--iterations", "1", "--prompts", "prompts.txt", *OPTIONS]
    arguments += ["--reward", "jpeg_compressibility", "--accuracy", "None"]
    done = run(*arguments, cwd=tmp_path, PYTHONIOENCODING="latin-1", LC_ALL="C")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Next: ")]
    assert "\\u7ea2" in line
    shown = shlex.split(line.removeprefix("Next: "))
    assert shown[:4] == ["tempflow-fast", "sample", "--weights", "run"]
    assert '$(touch ran), it\'s `x` & "y"' in shown[5]
    assert (tmp_path / "run" / "model").is_dir()


def test_a_closed_pipe_is_no_error(tmp_path):
    command = f"{shlex.join(COMMAND)} recipes | head -n 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("shapes\n", "", 0)


@pytest.mark.slow
def test_no_home_is_needed(tmp_path):
    nobody: dict[str, str | None] = {"HOME": None, "HF_HOME": None, "USER": None, "XDG_CACHE_HOME": None}
    done = run("sample", "--prompt", "x", "--count", "1", "--output", "x.png", cwd=tmp_path, **nobody)
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrote x.png: 1 images\n", "")


@pytest.mark.parametrize("arguments", [["recipes"], ["train", "--output", "out"]], ids=" ".join)
def test_a_working_directory_that_is_gone_is_named(tmp_path, arguments):
    inside = f"mkdir gone && cd gone && rmdir ../gone && {shlex.join([*COMMAND, *arguments])}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", inside], cwd=tmp_path, env=environment, capture_output=True, text=True)
    expected = f"tempflow-fast {arguments[0]}: the working directory does not exist any more: change to another one\n"
    assert (done.returncode, done.stderr) == (2, expected)


@pytest.mark.slow
def test_a_working_directory_that_cannot_be_written_is_named():
    done = run("train", "--output", "out", *OPTIONS, cwd=Path("/proc"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("tempflow-fast train: ")
    assert "out" in line
