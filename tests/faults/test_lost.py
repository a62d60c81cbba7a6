"""A process or a server that is lost in the middle of a run: the run ends with a sentence, and resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.launch import LAUNCH
from support.machines import ADDRESSES, CARD, two_machines
from support.runs import PATIENCE, go, tiny_config, untimed, wait_for
from support.started import started

from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.numbered import latest_checkpoint
from tempflow_fast.settings.run import TrainConfig

pytestmark = pytest.mark.slow
NO_END = {"num_iterations": None, "checkpoint_every": 1, "eval_images": 2, "prompts_per_iteration": 2}


def prepared(directory: Path, config: TrainConfig) -> RunDirectory:
    run = RunDirectory(directory / "run")
    run.path.mkdir(parents=True)
    run.write_config(config)
    return run


def resumed(run: RunDirectory, **settings) -> None:
    """Runs one more iteration; metrics have no gap and no repetition."""
    done = len(run.read_metrics())
    config = run.read_config().with_settings(num_iterations=done + 1, **settings)
    _, said = go(run.path, config)
    assert any(sentence.startswith("resuming from") for sentence in said)
    assert [row["iteration"] for row in run.read_metrics()] == list(range(1, done + 2))


def workers(launcher: int) -> dict[int, int]:
    """Rank -> number of the process, of a launch."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(entry[5:]): int(child) for entry in environment if entry.startswith(b"RANK=")}
    return found


def launch(run: RunDirectory, said: Path, *more: str) -> subprocess.Popen:
    """Starts two processes that train, in a process group of their own."""
    command = [*LAUNCH, "2", "-m", "tempflow_fast", "train", "--output", str(run.path), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with said.open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)


def end(process: subprocess.Popen) -> None:
    """Kills a process and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def assert_same_bits(run: RunDirectory, other: RunDirectory) -> None:
    """Two runs have the same metrics and the same last checkpoint."""
    assert untimed(run) == untimed(other)
    for name in ("weights", "average", "optimizer", "random"):
        ours, theirs = (load_file(latest_checkpoint(each.checkpoints) / f"{name}.safetensors") for each in (run, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("rank", [0, 1] if "KILLS" in os.environ else [1])
def test_when_one_of_two_processes_is_lost_the_other_ends_and_the_run_resumes_to_the_bit(tmp_path, rank):
    config = tiny_config(**NO_END, device="cpu")
    run, whole, said = prepared(tmp_path / "lost", config), prepared(tmp_path / "whole", config), tmp_path / "said"
    process = launch(run, said)
    try:
        wait_for(lambda: len(run.read_metrics()) >= 2, process)
        os.kill(workers(process.pid)[rank], signal.SIGKILL)
        start = time.monotonic()
        assert process.wait(PATIENCE) != 0
        assert time.monotonic() - start < 60
    finally:
        end(process)
    assert f"process {1 - rank} of 2 lost the others" in said.read_text() or "Signal 9 (SIGKILL)" in said.read_text()
    total = str(len(run.read_metrics()) + 1)
    for each in (run, whole):
        process = launch(each, said, "--iterations", total)
        try:
            assert process.wait(PATIENCE) == 0, said.read_text()[-3000:]
        finally:
            end(process)
    assert_same_bits(run, whole)


WAITING = """
import torch
from tempflow_fast import connections
from tempflow_fast.processes import launched

connections.ASK_AFTER, connections.ASK_EVERY, connections.ASK_TIMES, connections.GRACE = 1, 1, 2, 0.5
processes = launched(cpu=True)
with processes.guarded():
    processes.wait()
    print("together", flush=True)
    while True:
        processes.sum(torch.ones(3))
"""


def test_when_the_link_between_two_machines_is_cut_both_end_with_a_sentence():
    """With less patience than in a run, and without a launcher."""
    with ExitStack() as stack:
        try:
            machines = stack.enter_context(two_machines())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500"}
        processes = []
        for rank in (0, 1):
            environment = os.environ | shared | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": CARD, "OMP_NUM_THREADS": "1"}
            command = machines.on(rank, sys.executable, "-c", WAITING)
            processes.append(stack.enter_context(subprocess.Popen(command, env=environment, **pipes)))
            stack.callback(processes[-1].kill)
        for process in processes:
            assert process.stdout.readline() == "together\n", process.stderr.read()
        machines.pull()
        for rank, process in enumerate(processes):
            said = process.communicate(timeout=30)[1]
            assert process.returncode == 1
            assert f"process {rank} of 2 lost the others: one of them ended, does not answer or cannot" in said


def test_when_the_only_server_of_a_reward_is_lost_the_run_ends_by_name_and_resumes_with_another(tmp_path):
    serve = [sys.executable, "-m", "tempflow_fast", "serve-rewards", "jpeg_incompressibility", "--port"]
    with subprocess.Popen([*serve, "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = re.search(r":(\d+)", server.stdout.readline())[1]
            reward = {"remote": {"urls": f"http://127.0.0.1:{port}", "num_rounds": 2, "pause": 0.1}}
            config = tiny_config(**NO_END, reward=json.dumps(reward), accuracy=None)
            run = prepared(tmp_path, config)
            with started(["train", "--output", str(run.path)], tmp_path / "said") as process:
                process.wait_for(run.read_metrics)
                server.kill()
                assert process.status() == 2
                last = process.said.strip().splitlines()[-1]
                assert last.startswith('tempflow-fast train: reward "remote" failed on sample')
                assert "Traceback" not in process.said
        finally:
            server.kill()
    with subprocess.Popen([*serve, port], stdout=subprocess.PIPE, text=True) as server:
        server.stdout.readline()
        try:
            resumed(run)
        finally:
            server.kill()
