"""All-gathers of sharded weights in a rollout, counted and timed in two processes on CPUs: tables of docs/processes.md.

python -m bench.gathers [--networks 74M 302M]

Three structures do the same work: one network call per branch step, the wavefront, and the wavefront in pieces.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tempflow_fast import ops, rollout
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.processes import Processes, launched

from . import gather_law, machine, paper
from .gpu.models import Shape, random_policy, sd3
from .networks import LARGE, NETWORKS, PROMPTS, TEXT, Work, optimizer_of

PIECE = 12
"""Rows of the largest call of the wavefront in pieces."""
SHAPES: dict[str, Shape] = {
    "74M": NETWORKS[LARGE],
    "302M": sd3(64, (TEXT, 1024, 1024), layers=8, heads=16, head=64, sides=(8, 8)),
}
"""The second has a quarter of the image tokens, so that a rollout takes a minute on one core, not four."""
SHARDED = {
    **{"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"},
    **{"FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "OMP_NUM_THREADS": "1"},
}
"""What torchrun is not told on its command line: accelerate reads it from here."""


class GatherCounter(TorchDispatchMode):
    """Counts the all-gathers inside it, and the bytes that every process has after them."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes = 0, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operator: Any = func
        if operator.overloadpacket is torch.ops.c10d._allgather_base_:
            self.count += 1
            self.bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Measured:
    """A rollout in one process of several."""

    calls: int
    gathers: int
    bytes: int
    """Of whole weights after the all-gathers."""
    seconds: float


def structures(policy: DiffusersPolicy, index: int) -> dict[str, Callable[[], object]]:
    """Name -> a rollout of one trajectory, the one that process `index` has.

    Args:
        policy: acts.
        index: the number of the process.
    """
    config = Work(LARGE).config
    table, condition = config.table(policy), policy.encode(PROMPTS[index : index + 1])
    noise = ops.initial_noise(policy.latent_shape, 0, [index])

    def wavefront(max_batch: int | None) -> None:
        rollout(policy, condition, table, noise, config.num_branches, trajectory_ids=[index], max_batch=max_batch)

    return {
        "one call per branch step": lambda: paper.roll_out(policy, condition, table, noise, config),
        "wavefront": lambda: wavefront(None),
        f"wavefront, at most {PIECE} rows a call": lambda: wavefront(PIECE),
    }


def measure(policy: DiffusersPolicy, rollout_once: Callable[[], object]) -> Measured:
    """Runs a rollout once.

    Args:
        policy: whose calls are counted.
        rollout_once: the rollout.
    """
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = policy.network.register_forward_pre_hook(count)
    start = time.perf_counter()
    with GatherCounter() as counter:
        rollout_once()
    seconds = time.perf_counter() - start
    hook.remove()
    return Measured(calls, counter.count, counter.bytes, seconds)


def compared(processes: Processes, shape: Shape) -> dict[str, tuple[Measured, Measured]]:
    """Name of a structure -> its rollout with whole weights in every process, and with sharded ones.

    Args:
        processes: all of them call this.
        shape: of the network.
    """
    policy = random_policy(shape, torch.device("cpu"), torch.float32, lora=False)
    rollouts = structures(policy, processes.index)
    measured = []
    for sharded in (False, True):
        if sharded:
            processes.prepare(policy, optimizer_of(policy))
        row = {}
        for name, call in rollouts.items():
            processes.wait()
            row[name] = measure(policy, call)
        measured.append(row)
    return {name: (measured[0][name], measured[1][name]) for name in rollouts}


def table(found: dict[str, dict[str, tuple[Measured, Measured]]]) -> str:
    """The rows of the docs.

    Args:
        found: network -> what `compared` returns.
    """
    head = ("network", "structure", "calls", "all-gathers", "GB", "s, sharded", "s, whole", "s of gathers")
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for network, structures in found.items():
        for name, (whole, shards) in structures.items():
            cells = (f"{shards.bytes / 1e9:.1f}", *(f"{each.seconds:.1f}" for each in (shards, whole)))
            more = f"{shards.seconds - whole.seconds:.1f}"
            lines.append(" | ".join((network, name, str(shards.calls), str(shards.gathers), *cells, more)))
    return "\n".join(f"| {line} |" for line in lines)


def work(networks: list[str]) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})
    processes = launched(cpu=True)
    found = {name: compared(processes, SHAPES[name]) for name in networks}
    where = ", ".join(f"{name} {value}" for name, value in machine.facts().items())
    processes.say(f"{where}; {processes.kind} (gloo), N = {processes.count}, T = 10, K = 6\n")
    processes.say(table(found))


def main() -> None:
    """Command line: starts the processes; in each of them `work` runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    options = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        work(options.networks)
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bench.gathers"]
    subprocess.run([sys.executable, *launcher, *sys.argv[1:]], env=os.environ | SHARDED, check=True)
    print(f"\n{gather_law.page()}")


if __name__ == "__main__":
    main()
