"""How seconds grow with every size, and how they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tempflow_fast import GRPOConfig, grpo_step, ops
from tempflow_fast.grpo.geometry import Geometry

from .conftest import ROOT
from .networks import MIDDLE, PROMPTS, SMALL, Work, optimizer_of, redness
from .op_cases import TABLE

SIZES = {"N": (1, 2, 4, 8), "T": (4, 6, 8, 10), "K": (2, 4, 6, 12)}
POINTS = [
    pytest.param(axis, value, id=f"{axis}-{value}", marks=[] if value < 4 else pytest.mark.full)
    for axis, values in SIZES.items()
    for value in values
]


def passes(config: GRPOConfig, num_prompts: int) -> int:
    """Forward passes of an iteration, a backward pass being two: what its seconds should be proportional to."""
    return Geometry(config, num_prompts).costs()[0].total


@pytest.mark.gate("tests/grpo/test_step.py")
@pytest.mark.parametrize(("axis", "value"), POINTS)
def test_iteration(compare, axis, value):
    work = Work(SMALL, value if axis == "N" else 1)
    config = work.changed(**{"T": {"num_steps": value}, "K": {"num_branches": value}}.get(axis, {}))
    policy = work.policy()
    optimizer = optimizer_of(policy)
    call = {"ours": lambda: grpo_step(policy, work.prompts, redness, optimizer, config)}
    compare(f"scaling with {axis}", str(value), call, 5, size=value, law=passes(config, work.num_prompts))


@pytest.mark.gate("tests/ops/test_ops.py", "-k", "branch_and_euler")
@pytest.mark.parametrize("numel", [2**12, *(pytest.param(2**e, marks=pytest.mark.full) for e in (14, 16, 18, 20))])
def test_elements(compare, numel):
    x, v = torch.randn(2, 1, numel)
    call = {"ours": lambda: ops.branch_step(x, v, TABLE, 3, 6, 0, [0])}
    compare("scaling with D", f"{numel:,}", call, 20, warm_up=3, size=numel, law=numel)


@pytest.mark.gate("tests/grpo/test_shares.py")
@pytest.mark.gate("tests/test_processes.py", "-k", "many_processes")
@pytest.mark.full
def test_processes(compare):
    """The same iteration in one process on one core, and in two on two."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two processes need two cores")
    best = {"apart": max(apart())}

    def launch(count: int) -> None:
        best[str(count)] = min(best.get(str(count), float("inf")), together(count))

    calls = {f"{count} processes, from launch to end": lambda count=count: launch(count) for count in (2, 1)}
    compare("processes", f"{MIDDLE}, N = {len(PROMPTS)}", calls, 1, warm_up=0, best=best, keep_on_one_core=False)


WORKER = ["-m", "bench.process_worker"]
SETTINGS = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def together(num_processes: int) -> float:
    """Seconds of the best iteration that so many processes share, without their start."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return seconds_of(subprocess.Popen([sys.executable, *launcher, *WORKER], **SETTINGS))


def apart() -> list[float]:
    """The same of two processes that do one iteration each, at the same time, and know nothing of each other."""
    started = [
        subprocess.Popen([sys.executable, *WORKER], env={**os.environ, "LOCAL_RANK": str(index)}, **SETTINGS)
        for index in range(2)
    ]
    return [seconds_of(process) for process in started]


def seconds_of(process: subprocess.Popen) -> float:
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])["seconds"]
