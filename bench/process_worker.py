"""Seconds of an iteration that is shared by processes of one thread each: run by `test_scaling.py` under torchrun."""

from __future__ import annotations

import json
import os
import time

import torch

from tempflow_fast import grpo_step
from tempflow_fast.processes import launched

from .networks import MIDDLE, PROMPTS, Work, optimizer_of, redness

ROUNDS = 2


def main() -> None:
    """Prints the best of some rounds, as JSON."""
    torch.set_num_threads(1)
    index = int(os.environ["LOCAL_RANK"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})
    processes, work = launched(cpu=True), Work(MIDDLE, len(PROMPTS))
    policy = work.policy()
    optimizer = processes.prepare(policy, optimizer_of(policy))
    best = float("inf")
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        grpo_step(policy, work.prompts, redness, optimizer, work.config, processes=processes)
        best = min(best, time.perf_counter() - start)
    if processes.is_main:
        print(json.dumps({"seconds": best}))


if __name__ == "__main__":
    main()
