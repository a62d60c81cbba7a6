"""A full disk and missing rights: one sentence that names the file, nothing half-written, and the run can continue."""

from __future__ import annotations

import os
import subprocess
import sys
from errno import EFBIG
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import ROOT
from support.limits import file_size_limit, obey_permissions
from support.runs import go, tiny_config, untimed

from tempflow_fast.files import is_aside
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.numbered import latest_checkpoint

SETTINGS = {"prompts_per_iteration": 2, "eval_images": 2, "checkpoint_every": 1, "num_checkpoints": 2}


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> RunDirectory:
    return go(tmp_path_factory.mktemp("disk") / "run", tiny_config(**SETTINGS, num_iterations=1))[0]


@pytest.mark.slow
def test_a_run_continues_after_the_disk_was_full(begun, tmp_path):
    """The checkpoint of the second iteration is the first file that does not fit."""
    config = tiny_config(**SETTINGS, num_iterations=2)
    with file_size_limit(300_000), pytest.raises(OSError, match=r"File too large: '.*/run/(checkpoints/000002|model)'"):
        go(begun.path, config)
    assert [path for path in begun.path.rglob("*") if is_aside(path)] == []
    assert latest_checkpoint(begun.checkpoints).name == "000001"
    assert begun.tuned() == begun.model, "the one of before"
    go(begun.path, config)
    whole, _ = go(tmp_path / "whole", config)
    assert untimed(begun) == untimed(whole)
    ours, theirs = (load_file(latest_checkpoint(run.checkpoints) / "weights.safetensors") for run in (begun, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


START = """
import sys
from support.runs import tiny_config
from tempflow_fast.processes import Processes
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.resume import begin
try:
    print(begin(RunDirectory(sys.argv[1]), tiny_config(), Processes()).sentence())
except (ValueError, OSError) as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="permissions bind root only where rights can be given up")
@pytest.mark.slow
def test_what_may_not_be_read_or_written_is_named(tmp_path):
    def start(path: Path) -> str:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        command = [sys.executable, "-c", START, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=obey_permissions)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.path.chmod(0o500)
    try:
        assert start(run.path) == f"[Errno {13}] Permission denied: '{run.path / 'config.json'}'"
    finally:
        run.path.chmod(0o700)
    run.write_config(tiny_config())
    bad = run.checkpoints / "000003"
    bad.mkdir(parents=True)
    (bad / "checksums.sha256").touch()
    (bad / "checksums.sha256").chmod(0)
    assert f"{bad}: checksums.sha256 cannot be read (Permission denied)" in start(run.path)


def test_a_line_that_does_not_fit_leaves_nothing(tmp_path):
    run, path = RunDirectory(tmp_path), tmp_path / "metrics.jsonl"
    run.append_metrics({"iteration": 1})
    before = path.read_bytes()
    with file_size_limit(len(before) + 9), pytest.raises(OSError, match=r"metrics\.jsonl") as caught:
        run.append_metrics({"iteration": 2, "reward_mean": 1.0})
    assert caught.value.errno == EFBIG
    assert path.read_bytes() == before


def test_settings_that_do_not_fit_leave_those_of_before(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_config(tiny_config())
    with file_size_limit(100), pytest.raises(OSError, match=r"File too large: '.*/config\.json'"):
        run.write_config(tiny_config(seed=3))
    assert run.read_config() == tiny_config()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
