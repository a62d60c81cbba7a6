"""A process that runs many iterations keeps its memory, threads and files, and may fork."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import TESTS
from support.runs import PATIENCE
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step

CONFIG = GRPOConfig(num_steps=4, num_seeds=2, num_branches=3, max_batch=7, micro_batch=4, beta=0.1)


def held() -> tuple[int, int, int]:
    """(resident pages, threads, open files) of this process."""
    gc.collect()
    return (
        int(Path("/proc/self/statm").read_text().split()[1]),
        threading.active_count(),
        len(os.listdir("/proc/self/fd")),
    )


@pytest.mark.parametrize(("num_iterations", "growth"), [(100, 0.02), pytest.param(300, 0.006, marks=pytest.mark.slow)])
def test_memory_threads_and_files_stay_as_they_are(num_iterations, growth):
    """8 KB more per iteration are too much for the second. Memory grows by 0.0008, most of it in the first hundred."""
    policy = TinyPolicy()
    optimizer = sgd(policy, lr=1e-3)
    for seed in range(30):
        grpo_step(policy, PROMPTS, brightness, optimizer, CONFIG, seed)
    pages, threads, files = held()
    policy.calls.clear()
    for seed in range(num_iterations):
        grpo_step(policy, PROMPTS, brightness, optimizer, CONFIG, seed)
        policy.calls.clear()
    after = held()
    print(f"{num_iterations} iterations: {after[0] / pages:.4f} of the memory")
    assert after[0] <= (1 + growth) * pages
    assert after[1:] == (threads, files)


FORK = """
import os, sys
from support import TESTS
from support.runs import PATIENCE
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd
from tempflow_fast import GRPOConfig, grpo_step

def loss():
    policy = TinyPolicy()
    config = GRPOConfig(num_steps=4, num_seeds=2, num_branches=3, max_batch=7, micro_batch=4, beta=0.1)
    return float(grpo_step(policy, PROMPTS, brightness, sgd(policy), config)["loss"])

want = loss()
child = os.fork()
if child == 0:
    os._exit(0 if loss() == want else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_a_forked_process_can_train_too():
    """With one thread: OpenMP's pool of more does not survive a fork, whatever the program."""
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    assert subprocess.run(command, env=environment, timeout=PATIENCE, check=False).returncode == 0
