"""How everything here is timed: candidates in turn within every round, on one core, the best round of each counts.

    python -m pytest bench --benchmark-json figures.json      all figures
    python -m pytest bench --quick                            whether they can still be made

Drift of the machine then hits all candidates alike. A figure is made only if the tests of what it measures pass.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from . import machine

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="smallest cases, one round: whether the benchmarks still run")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "gate(*arguments): tests, as arguments of pytest, without which there is no figure"
    )
    config.addinivalue_line("markers", "full: too long for --quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        items[:] = [item for item in items if item.get_closest_marker("full") is None]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["facts"] = machine.facts()


@cache
def failure(arguments: tuple[str, ...]) -> str:
    """What the tests named by these arguments say if they fail; empty if they pass."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else f"pytest {' '.join(arguments)}: {ran.stdout[-2000:]}{ran.stderr[-1000:]}"


@pytest.fixture(autouse=True)
def gate(request: pytest.FixtureRequest) -> None:
    """Refuses to measure what is not correct."""
    for mark in request.node.iter_markers("gate"):
        if problem := failure(mark.args):
            pytest.fail(f"no figure, since the tests of what it measures fail: {problem}", pytrace=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--quick")


Candidates = Mapping[str, Callable[[], object]]
Compare = Callable[..., dict[str, float]]


@pytest.fixture
def compare(benchmark, quick: bool) -> Compare:
    """Times candidates against each other; the first one is what pytest-benchmark keeps."""

    def run(
        section: str,
        row: str,
        candidates: Candidates,
        rounds: int,
        warm_up: int = 1,
        keep_on_one_core: bool = True,
        **facts: Any,
    ) -> dict[str, float]:
        """Best seconds of each, recorded under a section and a row of the page together with other facts.

        Facts are read when all is timed: a dictionary that the candidates fill holds its last values.
        """
        (first, ours), *others = candidates.items()
        seconds: dict[str, list[float]] = {name: [] for name, _ in others}
        for _, call in [(first, ours), *others]:
            for _ in range(warm_up):
                call()

        def time_others() -> None:
            for name, call in others:
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)

        benchmark.group = section
        with pinned() if keep_on_one_core else nullcontext():
            benchmark.pedantic(ours, setup=time_others, rounds=1 if quick else rounds)
        best = {first: benchmark.stats.stats.min} | {name: min(times) for name, times in seconds.items()}
        benchmark.extra_info.update(section=section, row=row, seconds=best, **facts)
        return best

    return run


@contextmanager
def pinned() -> Iterator[None]:
    """Keeps this process on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
