"""`accelerate launch -m tempflow_fast train`: two real processes compute what one does, and only one of them writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.launch import LAUNCH
from support.runs import go, tiny_config

from tempflow_fast.cli import main
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.numbered import latest_checkpoint

PATIENCE = 600
DDP = LAUNCH
BLOCKS = ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
FSDP = [*LAUNCH[:2], "--use_fsdp", "--fsdp_version", "2", *BLOCKS, *LAUNCH[3:]]


def launch(launcher: list[str], *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [*launcher, "2", "-m", "tempflow_fast", "train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_two_processes_train_resume_and_write_once(tmp_path):
    """Whole networks, then sharded ones, then whole ones again: each start resumes what the last one saved."""
    settings = {"num_iterations": 3, "eval_every": 2, "eval_images": 5, "learning_rate": 1e-3, "warmup_iterations": 0}
    config = tiny_config(**settings, device="auto", tail_steps=2, tail_levels="nearest")
    alone, _ = go(tmp_path / "alone", config)
    run = RunDirectory(tmp_path / "many")
    run.path.mkdir()
    run.write_config(config)
    for iterations, launcher, kind in (("1", DDP, "DDP"), ("2", FSDP, "FSDP2"), ("3", DDP, "DDP")):
        done = launch(launcher, "--output", str(run.path), "--iterations", iterations)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f", 2 processes by {kind}; ops " in done.stdout
        assert done.stdout.count("before training: ") == 1, "only one process speaks"
    assert f"resuming from {run.checkpoints / '000002'}" in done.stdout
    assert [row["iteration"] for row in run.read_metrics()] == [1, 2, 3]
    for ours, theirs in zip(alone.read_metrics(), run.read_metrics(), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("reward_mean", "loss", "grad_norm", "kl", "learning_rate"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-6), name
    for name in ("weights", "average"):
        got, want = (load_file(latest_checkpoint(place.checkpoints) / f"{name}.safetensors") for place in (run, alone))
        flat, wanted = (torch.cat([tensors[key].flatten() for key in want]) for tensors in (got, want))
        assert ((flat - wanted).norm() / wanted.norm()).item() < 1e-5
    for number in (0, 2, 3):
        ours, theirs = (place.evaluation(number) for place in (alone, run))
        assert torch.allclose(ours.images, theirs.images, atol=1e-2)
        assert torch.allclose(ours.measures["reward"], theirs.measures["reward"], atol=0.51)
    assert json.loads((run.path / "eval_after.json").read_text())["overall"]["num_images"] == 5


TIMED = """
import sys
import torch
from support.runs import tiny_config
from tempflow_fast.processes import launched
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.prepare import prepare_policy
from tempflow_fast.run.train import train
processes = launched(cpu=True)
config = tiny_config(num_iterations=None, minutes=0.1, learning_rate_decay=1.0, warmup_iterations=0)
policy = prepare_policy(config.policy, processes.device)
trained = train(config, policy, RunDirectory(sys.argv[1]), report=lambda said: None, processes=processes)
assert trained.num_iterations > 1
flat = torch.cat([weight.detach().flatten() for weight in policy.parameters()])
assert torch.equal(processes.max(flat), -processes.max(-flat)), "the replicas have different weights"
"""


@pytest.mark.slow
def test_a_learning_rate_that_falls_with_the_clock_is_the_same_in_all_processes(tmp_path):
    (tmp_path / "timed.py").write_text(TIMED)
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [*DDP, "2", str(tmp_path / "timed.py"), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]


FAILING = """
import os
calls = []
def reward(images, prompts, metadata):
    calls.append(len(images))
    if len(calls) > 3 and os.environ["RANK"] == "1":  # one evaluation, two iterations
        raise OSError("the judge is gone")
    return images.mean((1, 2, 3))
"""


@pytest.mark.slow
def test_a_reward_that_fails_in_one_process_ends_all_after_a_checkpoint(tmp_path):
    (tmp_path / "judge_of_one.py").write_text(FAILING)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_config(tiny_config(reward="judge_of_one:reward", prompts_per_iteration=2, eval_images=2))
    done = launch(DDP, "--output", str(run.path), "--allow-code", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert 'reward "judge_of_one:reward" failed on sample 0' in done.stderr
    assert "the judge is gone" in done.stderr
    assert latest_checkpoint(run.checkpoints).name == "000002"
    assert [row["iteration"] for row in run.read_metrics()] == [1, 2]
    assert run.model.is_dir()


@pytest.mark.slow
def test_dry_run_shows_who_does_what():
    done = launch(DDP, "--output", "unused", "--dry-run", "--prompts-per-iteration", "7")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("7 prompts x 1 seeds") == 1
    assert re.search(r"^0 .*\n1 ", done.stdout, re.MULTILINE), "a line for each process"
    assert re.search(r"^in total +\d", done.stdout, re.MULTILINE)
    assert not Path("unused").exists()


def test_dry_run_of_a_recipe_needs_neither_model_nor_data(capsys):
    arguments = ["train", "--recipe", "sd35m-geneval", "--output", "unused", "--dry-run"]
    assert main([*arguments, "--model", "./not-here"]) == 0
    text = capsys.readouterr().out
    assert "48 prompts x 4 seeds = 192 trajectories" in text
    assert "memory: not known" in text


@pytest.mark.slow
def test_a_memory_limit_cuts_the_calls(capsys):
    arguments = ["train", "--output", "unused", "--dry-run", "--memory-limit"]
    rows, needed = [], []
    for limit in ("1", "0.1"):
        assert main([*arguments, limit]) == 0
        text = capsys.readouterr().out
        counts = r"at most (\d+) rows per training call, (\d+) per rollout call and (\d+) per decoding call"
        training, rollout, decoded = map(int, re.search(counts, text).groups())
        assert 1 <= rollout <= 64, "the recipe's own limit"
        assert 1 <= decoded <= 64
        rows.append(training)
        needed.append(float(re.search(r"in total +([\d.]+)", text)[1]))
    assert 1 <= rows[1] < rows[0]
    assert needed[1] <= 0.1 < needed[0]
    assert main([*arguments, "0.001"]) == 2
    assert "limit must be at least" in capsys.readouterr().err
