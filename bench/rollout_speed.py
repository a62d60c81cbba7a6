"""Seconds of one iteration: the paper's structure, eager in fp32, against ours with cheaper network calls."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.policies.compiled import compile_blocks

from .gpu import paper
from .gpu.checks import redness
from .gpu.models import SD3_SMALL, random_policy
from .gpu.timing import seconds_of

PAPER = "the paper's structure, eager, fp32"
VARIANTS = (PAPER, "ours", "ours, bf16", "ours, compiled", "ours, bf16, compiled")


@dataclass(frozen=True)
class Speed:
    """Of one iteration; all variants roll out the same trajectories and branches, and every branch has a signal."""

    iteration: str
    seconds: float
    """Median over the rounds, and so are the stages'."""
    rollout: float
    decode: float
    train: float
    """Seconds of these stages; not a number for the paper's structure, which is timed as a whole."""
    compiling: float
    """Seconds of torch.compile in the iteration before the first one that counts."""


@dataclass(frozen=True)
class Case:
    """A model, and the settings of its iteration; every branch gets a signal."""

    policy: Callable[[], DiffusersPolicy]
    prompts: Sequence[str]
    config: GRPOConfig
    prompts_per_call: int
    """In the paper's structure; all branches of so many prompts share a call."""


def embedded() -> Case:
    """The packaged pipeline in the settings of its recipe."""
    from tempflow_fast.prepare import prepare_policy
    from tempflow_fast.prompts import get_prompts
    from tempflow_fast.recipes import get_recipe

    recipe = get_recipe("shapes")
    entries = get_prompts("shapes", None, "prompt").training(0, recipe.task.prompts_per_iteration, 0)
    prompts = [entry["prompt"] for entry in entries]
    return Case(lambda: prepare_policy(recipe.policy), prompts, replace(recipe.grpo, adv_eps=1e-4), 10)


def sd3_small() -> Case:
    """74 M random parameters, one trajectory, T = 10, K = 6."""
    config = GRPOConfig(num_seeds=1, num_updates=1, max_batch=12)
    device = torch.device("cpu")
    return Case(lambda: random_policy(SD3_SMALL, device, torch.float32, lora=False), ["a fox"], config, 1)


def speeds(case: Case, variants: Sequence[str] = VARIANTS, rounds: int = 3) -> list[Speed]:
    """The variants in turn, `rounds` times, after one iteration each that warms up."""
    calls = {name: _iteration(case, name) for name in variants}
    compiling = {name: call(0).get("seconds_compile", 0.0) for name, call in calls.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, call in calls.items():
            found[name].append(call(1 + number))
    return [_speed(name, found[name], compiling[name]) for name in variants]


def _iteration(case: Case, variant: str) -> Callable[[int], dict[str, float]]:
    """Runs one iteration with a seed; returns its seconds, by stage where it tells."""
    policy = case.policy()
    if "compiled" in variant:
        compile_blocks(policy.network)
    config = replace(case.config, rollout_precision="bf16" if "bf16" in variant else None)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)

    def as_in_paper(seed: int) -> None:
        num_rows = case.prompts_per_call * config.num_seeds * config.num_branches
        for start in range(0, len(case.prompts), case.prompts_per_call):
            prompts = case.prompts[start : start + case.prompts_per_call]
            paper.iteration(policy, prompts, optimizer, config, seed, num_rows)

    def run(seed: int) -> dict[str, float]:
        metrics: dict[str, float] = {}

        def call() -> None:
            if variant == PAPER:
                as_in_paper(seed)
            else:
                metrics.update(grpo_step(policy, case.prompts, redness, optimizer, config, seed))

        return {"seconds": seconds_of(call, policy.device), **metrics}

    return run


def _speed(name: str, found: Sequence[dict[str, float]], compiling: float) -> Speed:
    def median(key: str) -> float:
        return statistics.median(each.get(key, math.nan) for each in found)

    stages = (median(f"seconds_{stage}") for stage in ("rollout", "decode", "train"))
    return Speed(name, median("seconds"), *stages, compiling)


def rows(found: Sequence[Speed]) -> list[dict[str, str | float]]:
    """Lines of a table, with the ratio to the paper's structure."""
    return [{**asdict(each), "paper / it": found[0].seconds / each.seconds} for each in found]


CASES = {"embedded": embedded, "sd3-small": sd3_small}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for row in rows(speeds(CASES[options.case](), options.variants, options.rounds)):
        print(row, flush=True)
