"""A process or a server that is lost in the middle of a run: the run ends with a sentence, and resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.launch import LAUNCH
from support.runs import PATIENCE, go, tiny_config, wait_for
from support.started import started

from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.settings.run import TrainConfig

pytestmark = pytest.mark.slow
NO_END = {"num_iterations": None, "checkpoint_every": 1, "eval_images": 2, "prompts_per_iteration": 2}


def prepared(directory: Path, config: TrainConfig) -> RunDirectory:
    run = RunDirectory(directory / "run")
    run.path.mkdir()
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


@pytest.mark.parametrize("rank", [0, 1] if "KILLS" in os.environ else [1])
def test_when_one_of_two_processes_is_lost_the_other_ends_within_a_minute_and_the_run_resumes(tmp_path, rank):
    run, said = prepared(tmp_path, tiny_config(**NO_END, device="cpu")), tmp_path / "said"
    command = [*LAUNCH, "2", "-m", "tempflow_fast", "train", "--output", str(run.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        wait_for(lambda: len(run.read_metrics()) >= 2, process)
        os.kill(workers(process.pid)[rank], signal.SIGKILL)
        start = time.monotonic()
        assert process.wait(PATIENCE) != 0
        assert time.monotonic() - start < 60
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert f"process {1 - rank} of 2 lost the others" in said.read_text() or "Signal 9 (SIGKILL)" in said.read_text()
    resumed(run)


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
