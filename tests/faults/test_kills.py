"""Whatever kills a run, and whenever: the same command finishes it, with the bits of a run that was never interrupted.

KILLS=300 is the long form, `make faults`.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faults import FULL, KILL, TORN, Ended, Faults, differing, state

pytestmark = pytest.mark.slow

NUM_KILLS = int(os.environ.get("KILLS", "3"))
KILLS_PER_RUN = 3
"""The first one in a new run, the others in resumed ones."""


class Bench:
    """A place for runs with faults, and what a run without one leaves."""

    def __init__(self, faults: Faults, scratch: Path) -> None:
        self.faults, self._scratch = faults, scratch
        whole = faults.run(scratch / "whole")
        assert whole.status == 0, whole.said
        self.num_events, self.wanted = whole.events, state(scratch / "whole")

    def new(self) -> Path:
        directory = self._scratch / "run"
        shutil.rmtree(directory, ignore_errors=True)
        return directory

    def problems(self, directory: Path, said: str) -> list[str]:
        """Finishes the run, and lists what is not as it has to be."""
        ended = self.faults.run(directory)
        if ended.status != 0:
            return [f"status {ended.status}: {ended.said[-500:]}"]
        found = differing(directory, self.wanted)
        return found + [word for word in ("Traceback", "damaged") if word in said + ended.said]


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    scratch = tmp_path_factory.mktemp("faults")
    with Faults(scratch) as faults:
        yield Bench(faults, scratch)


def test_a_run_killed_at_any_file_event_is_finished_bit_for_bit(bench, capsys):
    draw, num_runs, problems, num_killed = random.Random(NUM_KILLS), NUM_KILLS // KILLS_PER_RUN, {}, 0
    firsts = [1 + bench.num_events * index // num_runs for index in range(num_runs)]
    for first in firsts if num_runs > 1 else [bench.num_events // 2]:
        directory, said = bench.new(), ""
        events = [first, *(draw.randint(1, bench.num_events // 2) for _ in range(KILLS_PER_RUN - 1))]
        for event in events:
            ended = bench.faults.run(directory, event, draw.choice([KILL, KILL, TORN]))
            num_killed += ended.status == -9
            said += ended.said
        if found := bench.problems(directory, said):
            problems[str(events)] = found
    with capsys.disabled():
        if num_runs > 1:
            where = f"in new runs at {num_runs} of {bench.num_events} file events"
            print(f"\n{num_killed} kills, {where}, in resumed runs at random ones: {len(problems)} problems")
    assert not problems
    assert num_killed >= num_runs


def test_a_run_killed_at_any_time_is_finished_bit_for_bit(bench):
    draw, problems = random.Random(0), {}
    for _ in range(max(1, NUM_KILLS // 10)):
        directory, seconds = bench.new(), draw.uniform(0.5, 4)
        ended = bench.faults.run(directory, seconds=seconds)
        if found := bench.problems(directory, ended.said):
            problems[seconds] = found
    assert not problems


def check_full(bench: Bench, ended: Ended, directory: Path) -> None:
    assert ended.status == 2, ended.said
    assert ended.said.strip().splitlines()[-1].startswith("tempflow-fast train: ")
    assert bench.problems(directory, ended.said) == []


def test_a_full_disk_is_one_sentence_and_the_run_continues_when_there_is_space(bench):
    num = max(1, NUM_KILLS // 10)
    for index in range(num):
        directory, event = bench.new(), bench.num_events * (2 * index + 1) // (2 * num)
        ended = bench.faults.run(directory, event, FULL)
        assert "No space left on device" in ended.said.splitlines()[-1]
        check_full(bench, ended, directory)


def test_a_limit_for_file_sizes_is_one_sentence_and_the_run_continues_without_it(bench):
    directory = bench.new()
    ended = bench.faults.run(directory, file_size=20_000)
    assert "File too large" in ended.said.splitlines()[-1]
    check_full(bench, ended, directory)
