"""Ratios of the ops to PyTorch, as a Markdown table: `python -m bench.ops [--rounds N]` from the repository's root.

All candidates of a row are timed in turn within every round, on one pinned thread, and the best round counts, so drift
of the machine hits them alike. A figure is printed only after the op's tests have passed in the same process.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tempflow_fast import native

from .cases import NUM_BRANCHES, NUM_ROWS, OPS, OURS, SHAPES, gate


def best_times(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds per call: the best of `rounds`, after two calls to warm up and compile."""
    for call in candidates.values():
        call()
        call()
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def machine() -> str:
    """One line on where the figures come from."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    commit = described.stdout.strip() or "unknown"
    return (
        f"{model}, {native.cpu_isa() or 'reference'} kernels, one pinned thread, torch {torch.__version__}, "
        f"Python {platform.python_version()}, commit {commit}, load {os.getloadavg()[0]:.1f}"
    )


def table(op: str, rounds: int) -> str:
    """Times and ratios of one op as Markdown."""
    lines = []
    for shape, arguments in SHAPES.items():
        times = best_times(OPS[op](*arguments), rounds)
        if not lines:
            others = [name for name in times if name != OURS]
            lines = [f"| {op} | {OURS} | " + " | ".join(others) + " |", "|---" * (len(times) + 1) + "|"]
        cells = [f"{times[OURS] * 1e3:.2f} ms"]
        cells += [f"{times[name] * 1e3:.2f} ms ({times[name] / times[OURS]:.1f}x)" for name in others]
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print one table per op."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for op in OPS:
        gate(op)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"\n{machine()}\n\nN = {NUM_ROWS}, K = {NUM_BRANCHES}; policy_loss is forward and backward.")
    for op in OPS:
        print(f"\n{table(op, rounds)}")


if __name__ == "__main__":
    main()
