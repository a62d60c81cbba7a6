"""Cheaper network calls in the rollout: seconds against the paper's structure, distances from the full rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import pytest

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.policies.compiled import clock, compile_blocks

from . import paper
from .networks import EVERY_REWARD_COUNTS, LARGE, Work, optimizer_of, redness
from .op_cases import COMPILES
from .rollout_distance import shapes_distances
from .test_iteration import OURS, PAPER, limit

BF16, COMPILED, BOTH, INT8 = "ours, bf16", "ours, compiled", "ours, bf16, compiled", "ours, int8"


@dataclass(frozen=True)
class Case:
    """A model, and the settings of its iteration."""

    policy: Callable[[], DiffusersPolicy]
    prompts: Sequence[str]
    config: GRPOConfig
    prompts_per_call: int = 1
    """In the paper's structure; all branches of so many prompts share a call."""


def embedded() -> Case:
    """The packaged pipeline in the settings of its recipe, with every pair trained."""
    from tempflow_fast.prompts.sets import get_prompts
    from tempflow_fast.run.prepare import prepare_policy
    from tempflow_fast.settings.recipes import get_recipe

    recipe = get_recipe("shapes")
    entries = get_prompts("shapes", None, "prompt").training(0, recipe.task.prompts_per_iteration, 0)
    config = replace(recipe.grpo, adv_eps=EVERY_REWARD_COUNTS, num_updates=1)
    return Case(lambda: prepare_policy(recipe.policy), [entry["prompt"] for entry in entries], config, 10)


def large() -> Case:
    """74 M random weights, one trajectory."""
    work = Work(LARGE)
    return Case(work.policy, work.prompts, work.config)


@pytest.mark.full
@pytest.mark.gate("tests/grpo/test_rollout_calls.py", "-k", "ratios or near or compiled_once or 8_bits")
@pytest.mark.parametrize("case", [embedded, large])
def test_iteration(compare, case):
    case, compiling = case(), {}
    is_small = case.prompts_per_call > 1
    names = (OURS, PAPER, BF16, *([COMPILED, BOTH] if COMPILES else []), *([INT8] if is_small else []))
    calls = {name: iteration(case, name, compiling) for name in names}
    facts = {"compiling": compiling, "limit": limit(case.config, len(case.prompts))}
    row, rounds, warm_up = ("the embedded pipeline", 3, 1) if is_small else (LARGE, 1, 0)
    compare("cheaper rollouts", row, calls, rounds, warm_up, **facts)


def iteration(case: Case, name: str, compiling: dict[str, float]) -> Callable[[], None]:
    """One iteration of a kind; what torch.compile takes for it in a short one before is noted."""
    policy = case.policy()
    config = replace(case.config, rollout_precision=next((kind for kind in ("bf16", "int8") if kind in name), None))
    optimizer = optimizer_of(policy)
    if "compiled" in name:
        compile_blocks(policy.network)
        before, short = clock.seconds, replace(config, num_steps=2, num_branches=2, sigmas=None, branch_steps=None)
        grpo_step(policy, case.prompts, redness, optimizer, short)
        compiling[name] = clock.seconds - before

    def papers() -> None:
        num_rows = case.prompts_per_call * config.num_seeds * config.num_branches
        for start in range(0, len(case.prompts), case.prompts_per_call):
            prompts = case.prompts[start : start + case.prompts_per_call]
            paper.iteration(policy, prompts, optimizer, config, 0, num_rows)

    def ours() -> None:
        grpo_step(policy, case.prompts, redness, optimizer, config)

    return papers if name == PAPER else ours


@pytest.mark.full
@pytest.mark.gate("tests/grpo/test_rollout_calls.py", "-k", "near or ratios")
def test_distance(compare):
    """Of latents, rewards, ranks and gradients, on the first iteration of the recipe `shapes`."""
    rows: list[dict[str, float | str]] = []
    call = {"all rollouts and gradients": lambda: rows.extend(map(asdict, shapes_distances()))}
    compare("distance", "recipe shapes", call, 1, warm_up=0, rows=rows)
