"""One whole iteration: the paper's structure against ours at equal network evaluations, and where the seconds go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch.optim import Optimizer

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.policies import DiffusersPolicy

from . import paper
from .clocks import NetworkClock
from .networks import LARGE, MIDDLE, SMALL, Work, optimizer_of, redness

PAPER, OURS, STAGE = "the paper's structure", "ours", "seconds_"
VARIANTS = [(False, False), (True, False), (False, True), (True, True)]
CASES = [Work(SMALL)]
LONGER = [Work(SMALL, 1, *variant) for variant in VARIANTS[1:]]
LONGER += [Work(SMALL, n, *variant) for n in (2, 4, 8) for variant in (VARIANTS[0], VARIANTS[3])]
LONGER += [Work(MIDDLE, 1, *variant) for variant in VARIANTS] + [Work(MIDDLE, n) for n in (2, 4)] + [Work(LARGE)]
ROUNDS = {SMALL: 3, MIDDLE: 1, LARGE: 1}


@dataclass
class Clocked:
    """Iterations of one kind; `facts` is of the last one."""

    policy: DiffusersPolicy
    optimizer: Optimizer
    clock: NetworkClock
    facts: dict[str, float] = field(default_factory=dict)

    @classmethod
    def watch(cls, policy: DiffusersPolicy, with_reference: bool = False) -> Clocked:
        optimizer = optimizer_of(policy)
        return cls(policy, optimizer, NetworkClock(policy, optimizer, with_reference))

    def run(self, iteration: Callable[[], Mapping[str, Any]]) -> None:
        """One iteration, whose seconds and counts become the facts."""
        self.clock.reset()
        start = time.perf_counter()
        measured = iteration()
        total = time.perf_counter() - start
        stages = {name.removeprefix(STAGE): value for name, value in measured.items() if name.startswith(STAGE)}
        self.facts.update(stages, total=total, network=self.clock.network, optimizer=self.clock.seconds["optimizer"])
        self.facts.update(evaluations=self.clock.rows, calls=self.clock.calls)


def limit(config: GRPOConfig, num_prompts: int) -> float:
    """The paper's forward passes over ours, a backward pass being two."""
    ours, papers, _ = Geometry(config, num_prompts).costs()
    return papers.total / ours.total


@pytest.mark.gate("tests/grpo/test_step.py")
@pytest.mark.gate("tests/grpo/test_objective.py")
@pytest.mark.parametrize("work", [*CASES, *(pytest.param(work, marks=pytest.mark.full) for work in LONGER)], ids=str)
def test_iteration(compare, work):
    config, rows = work.config, work.config.num_branches * len(work.prompts)
    ours, papers = (Clocked.watch(work.policy(), work.with_kl) for _ in range(2))

    def step() -> dict[str, Any]:
        return grpo_step(ours.policy, work.prompts, redness, ours.optimizer, config)

    def scripts() -> dict[str, Any]:
        return paper.iteration(papers.policy, work.prompts, papers.optimizer, config, 0, rows)

    calls = {OURS: lambda: ours.run(step), PAPER: lambda: papers.run(scripts)}
    warm_up = 0 if work.network == LARGE else 1
    compare(
        "iteration", str(work), calls, ROUNDS[work.network], warm_up,
        parts={OURS: ours.facts, PAPER: papers.facts}, limit=limit(config, work.num_prompts),
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.gate("tests/grpo/test_step.py")
def test_adapter(compare):
    """As the recipes train: what the optimizer does for all weights of a network is not in the way."""
    work = Work(LARGE, adapter=True)
    ours = Clocked.watch(work.policy())

    def step() -> dict[str, Any]:
        return grpo_step(ours.policy, work.prompts, redness, ours.optimizer, work.config)

    compare("stage by stage", str(work), {OURS: lambda: ours.run(step)}, 1, parts={OURS: ours.facts})


@pytest.mark.gate("tests/grpo/test_step.py")
def test_embedded(compare):
    """The packaged pipeline with its own reward, stage by stage."""
    from tempflow_fast.prompts.sets import get_prompts
    from tempflow_fast.rewards import get_reward
    from tempflow_fast.run.prepare import prepare_policy
    from tempflow_fast.settings.recipes import get_recipe

    recipe = get_recipe("shapes")
    entries = get_prompts("shapes", None, "prompt").training(0, recipe.task.prompts_per_iteration, 0)
    ours, reward = Clocked.watch(prepare_policy(recipe.policy)), get_reward(recipe.task.reward)
    prompts = [entry["prompt"] for entry in entries]

    def step() -> dict[str, Any]:
        return grpo_step(ours.policy, prompts, reward, ours.optimizer, recipe.grpo, 0, entries)

    compare("stage by stage", "the embedded pipeline", {OURS: lambda: ours.run(step)}, 3, parts={OURS: ours.facts})
