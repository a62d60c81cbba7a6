"""Only one process writes a run directory, and none is shut out by one that is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.runs import go, tiny_config
from support.started import started

from tempflow_fast.evaluation.result import Evaluation
from tempflow_fast.run import lock
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.lock import DirectoryLock, wait_until_free

HOLDER = """
import sys, time
from pathlib import Path
from tempflow_fast.run.lock import DirectoryLock
with DirectoryLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
IN_USE = "directory must be one that no other process is writing, got '.*', which process "


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "STALE", 1.0)


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def elsewhere(directory: Path) -> Path:
    """Makes the lock that of a process on another machine; returns its file."""
    path = directory / ".lock-1"
    facts = json.loads(path.read_text())
    touched = path.stat().st_mtime
    path.write_text(json.dumps({**facts, "machine": "another", "host": "node7"}))
    os.utime(path, (touched, touched))
    return path


def test_a_second_process_is_refused_and_told_who_the_first_one_is(tmp_path, holder):
    with pytest.raises(ValueError, match=f"{IN_USE}{holder.pid} on "), DirectoryLock(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_gone_from_this_machine_shuts_nobody_out(tmp_path, holder, number):
    holder.send_signal(number)
    time.sleep(0.3)  # it is a zombie now: this process has not waited for it
    start = time.monotonic()
    with DirectoryLock(tmp_path):
        assert time.monotonic() - start < 0.5
        assert [path.name for path in tmp_path.iterdir()] == [".lock-2"]


def test_a_process_that_stands_still_on_this_machine_holds_the_directory(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / ".lock-1", (1, 1))
    with pytest.raises(ValueError, match=IN_USE):
        wait_until_free(tmp_path)


def test_a_number_that_belongs_to_another_process_now_is_no_holder(tmp_path, holder):
    path = tmp_path / ".lock-1"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": os.getpid()}))
    assert wait_until_free(tmp_path) == 1


def test_a_heartbeat_from_another_machine_is_noticed(tmp_path):
    said: list[str] = []
    with DirectoryLock(tmp_path):
        elsewhere(tmp_path)
        with pytest.raises(ValueError, match=f"{IN_USE}{os.getpid()} on node7"):
            wait_until_free(tmp_path, said.append)
    assert len(said) <= 1


@pytest.mark.parametrize("facts", [None, "", "[]"])
def test_without_a_heartbeat_from_another_machine_a_start_waits_and_then_takes_over(tmp_path, holder, facts):
    holder.kill()
    path = elsewhere(tmp_path)
    if facts is not None:  # killed before it wrote them
        path.write_text(facts)
    os.utime(path)
    said: list[str] = []
    start = time.monotonic()
    with DirectoryLock(tmp_path, said.append):
        assert 0.8 < time.monotonic() - start < 5
    assert len(said) == 1
    assert "waiting for a sign of life" in said[0]


def test_a_lock_from_another_machine_that_is_old_or_was_released_holds_nothing(tmp_path, holder):
    holder.kill()
    path = elsewhere(tmp_path)
    for touched in (0, time.time() - 100):
        os.utime(path, (touched, touched))
        assert wait_until_free(tmp_path) == 1


def test_a_run_that_has_ended_leaves_the_directory_free(tmp_path):
    for number in (1, 2):
        with DirectoryLock(tmp_path):
            assert [path.name for path in tmp_path.iterdir()] == [f".lock-{number}"]


def test_a_copy_of_a_directory_in_use_is_free(tmp_path):
    with DirectoryLock(tmp_path / "run"):
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / ".lock-1").write_bytes((tmp_path / "run" / ".lock-1").read_bytes())
        assert wait_until_free(tmp_path / "copy") == 1


def test_whoever_was_overtaken_while_it_stood_still_stops_before_it_writes(tmp_path):
    with DirectoryLock(tmp_path) as mine:
        mine.check()
        (tmp_path / ".lock-2").touch()
        with pytest.raises(ValueError, match=r"held by this process, got .* taken over"):
            mine.check()


def test_of_many_starts_at_once_one_wins(tmp_path):
    won: list[int] = []
    lost: list[int] = []
    over = threading.Event()

    def start(index: int) -> None:
        try:
            with DirectoryLock(tmp_path):
                won.append(index)
                over.wait(10)
        except ValueError:
            lost.append(index)
            if len(lost) == 7:
                over.set()

    for _ in range(20):  # the first time in an empty directory, then after a lock that was released
        threads = [threading.Thread(target=start, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert (len(won), len(lost)) == (1, 7)
        won.clear()
        lost.clear()
        over.clear()


@pytest.mark.slow
def test_two_starts_of_one_command_write_once_and_readers_are_not_shut_out(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_config(tiny_config(num_iterations=None, checkpoint_every=1))
    arguments = ["train", "--output", str(run.path)]
    with started(arguments, tmp_path / "first") as first:
        first.wait_for(lambda: run.model.is_dir() or len(run.read_metrics()) >= 2)
        with started(arguments, tmp_path / "second") as second:
            assert second.status() == 2
            assert f"which process {first.process.pid} on " in second.said
            assert "before training" not in second.said
        assert isinstance(run.evaluation(0), Evaluation)
        first.signal(signal.SIGTERM)
        assert first.status() == 143
    assert [row["iteration"] for row in run.read_metrics()] == list(range(1, len(run.read_metrics()) + 1))
    assert len((run.path / "starts.jsonl").read_text().splitlines()) == 1
    _, said = go(run.path, run.read_config().with_settings(num_iterations=len(run.read_metrics())))
    assert "resuming from" in said[1]
