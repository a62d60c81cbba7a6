"""Seconds of an iteration at equal signal: the paper's structure in fp32 against settings that the meter has measured.

    python -m bench.equal_signal docs/signal/start.json --output docs/signal/seconds.json

Both iterations train the packaged pipeline with a reward that takes no time; they are timed in turn, with one thread,
in seconds of processor time, which other processes on the machine hardly change. An iteration with the share s of the
signal has to be run 1 / s times, so its seconds count divided by s.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.commands.signal import changed
from tempflow_fast.prompts.sets import get_prompts
from tempflow_fast.run.prepare import prepare_policy
from tempflow_fast.settings.recipes import get_recipe

from . import paper
from .networks import EVERY_REWARD_COUNTS, optimizer_of, redness

PAPER = "the paper's structure, fp32"


@dataclass(frozen=True)
class Timed:
    """One kind of iteration."""

    name: str
    seconds: float
    """Median of the rounds."""
    relative: float
    """Its signal over that of all branch steps with full tails."""
    error: float
    """Standard error of the same."""
    speedup: float
    """The paper's seconds over its own at equal signal."""


def timed(report: dict[str, Any], num_prompts: int, rounds: int) -> list[Timed]:
    """Times the paper's structure and every setting of a report that has branches, in turn.

    Args:
        report: as `tempflow-fast signal` writes it; its first setting is the paper's.
        num_prompts: of an iteration.
        rounds: how often each is timed.
    """
    recipe = get_recipe("shapes")
    prompts = [entry["prompt"] for entry in get_prompts("shapes", None, "prompt").training(0, num_prompts, 0)]
    first, *others = [setting for setting in report["settings"] if "trunk=sde" not in setting["name"]]
    reference = changed(replace(recipe.grpo, adv_eps=EVERY_REWARD_COUNTS), first["name"])
    policies = [prepare_policy(recipe.policy) for _ in range(2)]
    optimizers = [optimizer_of(policy) for policy in policies]

    def papers() -> object:
        rows = num_prompts * reference.branch_counts[0][1]
        return paper.iteration(policies[0], prompts, optimizers[0], reference, 0, rows)

    def ours(config: GRPOConfig) -> Callable[[], object]:
        return lambda: grpo_step(policies[1], prompts, redness, optimizers[1], config)

    calls = {PAPER: papers, first["name"]: ours(reference)}
    calls |= {other["name"]: ours(changed(reference, other["name"])) for other in others}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + rounds):  # the first one warms up
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    medians = {name: median(values[1:]) for name, values in seconds.items()}
    signals = {PAPER: (1.0, 0.0)} | {s["name"]: _estimate(s["relative"]) for s in (first, *others)}
    return [Timed(name, medians[name], *signals[name], _speedup(medians, signals, name)) for name in calls]


def _estimate(figure: dict[str, float]) -> tuple[float, float]:
    return figure["value"], figure["error"]


def _speedup(medians: dict[str, float], signals: dict[str, tuple[float, float]], name: str) -> float:
    return medians[PAPER] / medians[name] * signals[name][0]


def table(rows: Sequence[Timed]) -> str:
    """A Markdown table."""
    lines = ["| iteration | seconds | signal | the paper's seconds at equal signal, over its own |"]
    lines.append("| --- | ---: | ---: | ---: |")
    lines += [f"| {r.name} | {r.seconds:.2f} | {r.relative:.2f} +- {r.error:.1g} | {r.speedup:.1f} |" for r in rows]
    return "\n".join(lines)


def main() -> None:
    """Times, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.equal_signal", description="Seconds at equal signal.")
    parser.add_argument("report", type=Path, help="report.json of tempflow-fast signal")
    parser.add_argument("--prompts", type=int, default=8, help="of an iteration")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    rows = timed(json.loads(chosen.report.read_text()), chosen.prompts, chosen.rounds)
    print(table(rows))
    if chosen.output:
        chosen.output.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
