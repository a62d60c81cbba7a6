"""What signals do to a run: when it ends, with which status, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.launch import LAUNCH
from support.runs import PATIENCE, tiny_config
from support.started import Started, ignore_interrupts, started

from tempflow_fast import interruption
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.numbered import latest_checkpoint
from tempflow_fast.run.signals import STOPS, StopRequest
from tempflow_fast.settings.run import TrainConfig

HANGING = """
import time
calls = []
def reward(images, prompts, metadata):
    calls.append(1)
    if len(calls) == 4:  # one evaluation, two iterations
        open("hangs", "w").close()
        time.sleep(600)
    return images.mean((1, 2, 3))
"""
NO_END = {"num_iterations": None, "checkpoint_every": 10**6, "eval_images": 1, "prompts_per_iteration": 2}


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(directory: Path, config: TrainConfig) -> tuple[RunDirectory, list[str]]:
    """A run directory with settings alone, and the arguments that start the run."""
    run = RunDirectory(directory / "run")
    run.path.mkdir()
    run.write_config(config)
    return run, ["train", "--output", str(run.path)]


def saved(run: RunDirectory) -> int:
    """The iteration of the last checkpoint; 0 if there is none."""
    path = latest_checkpoint(run.checkpoints)
    return 0 if path is None else int(path.name)


def assert_resumable(run: RunDirectory, started: Started) -> None:
    assert "Traceback" not in started.said
    assert saved(run) == len(run.read_metrics()) > 0
    assert run.model.is_dir()


@pytest.mark.slow
def test_sigterm_ends_a_run_with_a_checkpoint_and_without_scoring(workplace):
    run, arguments = prepared(workplace, tiny_config(**NO_END, grace_seconds=60.0))
    with started(arguments, workplace / "said") as process:
        process.wait_for(run.read_metrics)
        process.signal(signal.SIGTERM)
        assert process.status() == 143
        assert_resumable(run, process)
        assert not (run.path / "eval_after.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "grace", "status"),
    [
        ([signal.SIGINT], 2.0, 130),
        ([signal.SIGINT, signal.SIGINT], 600.0, 130),
    ],
)
def test_a_hanging_reward_is_given_up_and_the_run_saved(workplace, signals, grace, status):
    (workplace / "hanging.py").write_text(HANGING)
    run, arguments = prepared(workplace, tiny_config(**NO_END, reward="hanging:reward", grace_seconds=grace))
    with started([*arguments, "--reward", "hanging:reward"], workplace / "said") as process:
        process.wait_for((workplace / "hangs").exists)
        for number in signals:
            process.signal(number)
            process.wait_for(lambda: "stopping" in process.said)
        assert process.status(30) == status
        assert_resumable(run, process)
        assert saved(run) == 2


@pytest.mark.slow
def test_sigusr1_saves_a_checkpoint_and_the_run_continues(workplace):
    run, arguments = prepared(workplace, tiny_config(**NO_END))
    with started(arguments, workplace / "said") as process:
        process.wait_for(run.read_metrics)
        process.signal(signal.SIGUSR1)
        process.wait_for(lambda: saved(run))
        process.wait_for(lambda: len(run.read_metrics()) > saved(run) + 1)


@pytest.mark.slow
def test_a_job_in_the_background_ignores_ctrl_c_but_not_sigterm(workplace):
    run, arguments = prepared(workplace, tiny_config(**NO_END))
    with started(arguments, workplace / "said", ignore_interrupts) as process:
        process.wait_for(run.read_metrics)
        process.signal(signal.SIGINT)
        done = len(run.read_metrics())
        process.wait_for(lambda: len(run.read_metrics()) > done + 1)
        process.signal(signal.SIGTERM)
        assert process.status() == 143


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["imports", "evaluation"])
def test_an_early_ctrl_c_has_no_traceback_and_leaves_no_run(workplace, stage):
    (workplace / "slow.py").write_text("import time\nopen('evaluates', 'w').close()\ntime.sleep(60)\n")
    arguments = ["train", "--output", "run"]
    if stage == "evaluation":
        (workplace / "slow.py").write_text(HANGING.replace("== 4", "== 1").replace("hangs", "evaluates"))
        arguments += ["--reward", "slow:reward", "--accuracy", "None"]
    command = [sys.executable, "-m", "tempflow_fast", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE
        while stage == "evaluation" and not Path("evaluates").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (130, -signal.SIGINT)
        assert process.stderr.read().strip() in ("", "interrupted")


@pytest.mark.slow
def test_a_launch_ends_as_one(workplace):
    """Ctrl-C reaches the launcher and its processes, and the launcher passes it on once more."""
    run, arguments = prepared(workplace, tiny_config(**NO_END, device="cpu"))
    with open("said", "w") as output:
        command = [*LAUNCH, "2", "-m", "tempflow_fast", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)
    try:
        end = time.monotonic() + PATIENCE
        while not run.read_metrics() and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
    said = Path("said").read_text()
    assert said.count("stopping: the weights will be saved, but not scored") == 1
    assert "KeyboardInterrupt" not in said
    assert saved(run) == len(run.read_metrics()) > 0


def raised(number: int) -> StopRequest:
    before = signal.signal(number, signal.SIG_DFL)  # a process in the background may have begun with ignored ones
    try:
        with StopRequest(speaks=False) as stop, stop.deferred():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    return stop


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_is_deferred_and_its_status_is_that_of_a_shell(number):
    stop = raised(number)
    assert (stop.made, stop.status) == (True, 128 + number)
    assert stop.hurried == (number != signal.SIGINT)


def test_outside_the_iterations_a_signal_interrupts_at_once():
    with StopRequest(speaks=False), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_handlers_of_before_come_back_and_ignored_signals_stay_ignored(monkeypatch):
    mine = lambda number, frame: None  # noqa: E731
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        signal.signal(signal.SIGTERM, mine)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest(speaks=False) as stop, stop.deferred():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.made
            signal.raise_signal(signal.SIGTERM)
            assert stop.made
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_calls_of_one_process_are_given_up_after_half_of_the_grace_time_those_of_several_are_not():
    for is_alone in (True, False):
        with StopRequest(grace_seconds=0.2, is_alone=is_alone, speaks=False) as stop, stop.deferred():
            interruption.before_call()
            signal.raise_signal(signal.SIGTERM)
            interruption.before_call()
            time.sleep(0.15)
            assert interruption.is_due()
            if is_alone:
                with pytest.raises(interruption.GivenUpError):
                    interruption.before_call()
            else:
                interruption.before_call()
        assert not interruption.is_due()
