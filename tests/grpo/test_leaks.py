"""A process that runs many iterations keeps its memory, threads and files, and may fork."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
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


@pytest.mark.parametrize("num_iterations", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_memory_threads_and_files_stay_as_they_are(num_iterations):
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
    assert after[0] <= 1.02 * pages
    assert after[1:] == (threads, files)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_can_train_too():
    policy = TinyPolicy()
    want = float(grpo_step(policy, PROMPTS, brightness, sgd(policy), CONFIG)["loss"])
    child = os.fork()
    if child == 0:
        try:
            again = TinyPolicy()
            got = float(grpo_step(again, PROMPTS, brightness, sgd(again), CONFIG)["loss"])
            os._exit(0 if got == want else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
