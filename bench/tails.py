"""How near each kind of cheap tail is to the full one, on the same branches: cost, distance, ranks and advantages.

    python -m bench.tails embedded --output docs/signal/tails-embedded.json
    python -m bench.tails "74 M" --output docs/signal/tails-74M.json

The packaged pipeline has the reward of its recipe. A network of random weights has the sine of a random projection of
the image, which is smooth. The figures are written after each kind of tail; the same command continues a measurement
that was interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempflow_fast import GRPOConfig
from tempflow_fast.errors import require
from tempflow_fast.files import write_json
from tempflow_fast.grpo.acting import Acted, act
from tempflow_fast.grpo.gate import cosine, rank_correlation
from tempflow_fast.grpo.levels import with_levels
from tempflow_fast.grpo.shares import Shares
from tempflow_fast.grpo.stage_clock import StageClock
from tempflow_fast.grpo.tails import Tails, tails_of
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.processes import Processes
from tempflow_fast.rewards import WeightedReward, get_reward

from .networks import NETWORKS, Work

EMBEDDED = "embedded"
NUM_STEPS, NUM_BRANCHES, GUIDANCE = 10, 6, 2.0
LEVELS_SEED = 1
"""Levels are chosen on other noise than they are judged on."""
OPTIONS: dict[str, dict[str, Any]] = {
    **{f"{length} steps": {"tail_steps": length} for length in (4, 3, 2, 1)},
    **{f"{length} steps, nearest": {"tail_steps": length, "tail_levels": "nearest"} for length in (4, 3, 2)},
    "4 steps, ab2": {"tail_steps": 4, "tail_solver": "ab2"},
    "4 steps, dpmpp_2m": {"tail_steps": 4, "tail_solver": "dpmpp_2m"},
    "3 steps, ab2": {"tail_steps": 3, "tail_solver": "ab2"},
    "3 steps, dpmpp_2m": {"tail_steps": 3, "tail_solver": "dpmpp_2m"},
    "full, bf16": {"tail_precision": "bf16"},
    "full, int8": {"tail_precision": "int8"},
    "2 steps, int8": {"tail_steps": 2, "tail_precision": "int8"},
}
GUIDED: dict[str, dict[str, Any]] = {
    "guidance above 0.3": {"tail_guidance": (0.3, 1.0)},
    "no guidance": {"tail_guidance": (1.0, 1.0)},
    "guidance above 0.3, 2 steps": {"tail_guidance": (0.3, 1.0), "tail_steps": 2},
}
"""Against full tails with guidance everywhere."""


@dataclass(frozen=True)
class Case:
    """A policy, what it is trained for, and the prompts of an iteration."""

    policy: DiffusersPolicy
    reward: WeightedReward
    prompts: Sequence[dict[str, Any]]
    config: GRPOConfig


@dataclass(frozen=True)
class Nearness:
    """Of one kind of tail to the full one, at one branch step."""

    option: str
    step: int
    evaluations: int
    """Network evaluations of the tails of a trajectory, guidance counting twice."""
    distance: float
    """Root mean square of the difference of the finished latents, over that of the latents."""
    rank_correlation: float
    """Spearman's, of the rewards within groups; mean over the groups with a spread after both."""
    cosine: float
    """Of the advantages."""


def embedded(num_prompts: int) -> Case:
    """The packaged pipeline with ten steps."""
    from tempflow_fast.prompts.sets import get_prompts
    from tempflow_fast.run.prepare import prepare_policy
    from tempflow_fast.settings.recipes import get_recipe

    recipe = get_recipe("shapes")
    sigmas = (*(1 - step / NUM_STEPS for step in range(NUM_STEPS)), 0.0)
    config = replace(recipe.grpo, num_steps=NUM_STEPS, sigmas=sigmas, branch_steps=None, num_branches=NUM_BRANCHES)
    prompts = get_prompts("shapes", None, "prompt").training(0, num_prompts, 0)
    return Case(prepare_policy(recipe.policy), get_reward(recipe.task.reward), prompts, config)


def random_network(name: str, num_prompts: int, branch_steps: tuple[int, ...]) -> Case:
    """A network of random weights.

    Args:
        name: of `NETWORKS`.
        num_prompts: of the iteration.
        branch_steps: some of them, since a large network takes its time.
    """
    work = Work(name, num_prompts)
    weights = torch.randn(3 * 4 * 4, generator=torch.Generator().manual_seed(0))

    def wave(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        return (images.flatten(1) @ weights).sin()

    config = work.changed(num_steps=NUM_STEPS, branch_steps=branch_steps, num_branches=NUM_BRANCHES)
    return Case(work.policy(), get_reward(wave), [{"prompt": text} for text in work.prompts], config)


def nearness(case: Case, options: dict[str, dict[str, Any]]) -> Iterator[list[Nearness]]:
    """Finishes the same branches by the full tail and by each option.

    Args:
        case: the policy and its settings, with full tails.
        options: settings of tails by name.

    Yields:
        The rows of an option, one per branch step.
    """
    full = _acted(case, case.config)
    for name, settings in options.items():
        config = with_levels(replace(case.config, **settings), case.policy, case.prompts, LEVELS_SEED)
        cheap, tails, found = _acted(case, config), tails_of(config, config.table(case.policy)), []
        for place, step in enumerate(cheap.branches.common_steps or ()):
            latents = [acted.branches.dense(acted.rollout.flat_latents)[:, place] for acted in (cheap, full)]
            rewards = [acted.branches.dense(acted.scored.rewards.total)[:, place] for acted in (cheap, full)]
            advantages = [acted.branches.dense(acted.advantages)[:, place].flatten() for acted in (cheap, full)]
            ranks = rank_correlation(*rewards)
            distance = _rms(latents[0] - latents[1]) / _rms(latents[1])
            cost, rank = _tail_evaluations(config, tails, step), ranks[~ranks.isnan()].mean().item()
            found.append(Nearness(name, step, cost, distance, rank, cosine(*advantages).item()))
        yield found


def _acted(case: Case, config: GRPOConfig) -> Acted:
    texts, shares = [entry["prompt"] for entry in case.prompts], Shares(len(case.prompts), 1)
    config = replace(config, num_seeds=1, num_updates=1)
    table = config.table(case.policy)
    rest = (table, config, 0, shares, Processes(), StageClock())
    return act(case.policy, case.reward, texts, [dict(entry) for entry in case.prompts], *rest)


def _tail_evaluations(config: GRPOConfig, tails: Tails, step: int) -> int:
    first = tails.first_rows[step]
    modes = tails.modes[first : first + tails.lengths[step]]
    each = (2 if mode.guided and config.guidance_scale > 1 else 1 for mode in modes)
    return dict(config.branch_counts)[step] * sum(each)


def _rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


def table(rows: Sequence[Nearness]) -> str:
    """A Markdown table: a line per option, a column per branch step."""
    steps = sorted({row.step for row in rows})
    lines = ["| tail | " + " | ".join(f"step {step}" for step in steps) + " |", "| --- |" + " --- |" * len(steps)]
    for option in dict.fromkeys(row.option for row in rows):
        cells = [_cell(row) for row in rows if row.option == option]
        lines.append(f"| {option} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Nearness) -> str:
    return f"{row.evaluations}: {row.distance:.2f}, {row.rank_correlation:.2f}, {row.cosine:.2f}"


def measured(case: Case, conditions: dict[str, Any], output: Path | None) -> dict[str, list[Nearness]]:
    """Measures every option without and with guidance, and keeps what is done.

    Args:
        case: the policy and its settings, with full tails and without guidance.
        conditions: what the figures depend on.
        output: JSON file for the figures; those that it has are not measured again.

    Raises:
        ValueError: for a file with the figures of other conditions.
    """
    tables: dict[str, list[Nearness]] = {"": [], f"guidance {GUIDANCE:g}": []}
    if output and output.exists():
        known = json.loads(output.read_text())
        require(known["conditions"] == conditions, "bench.tails", "--output", f"figures of {conditions}", output)
        tables = {head: [Nearness(**row) for row in rows] for head, rows in known["tables"].items()}
    guided = replace(case, config=replace(case.config, guidance_scale=GUIDANCE))
    for rows, part, options in zip(tables.values(), (case, guided), (OPTIONS, GUIDED), strict=True):
        done = {row.option for row in rows}
        missing = {name: settings for name, settings in options.items() if name not in done}
        for found in nearness(part, missing) if missing else ():
            rows += found
            if output:
                write_json(output, {"conditions": conditions, "tables": _as_json(tables)})
    return tables


def _as_json(tables: dict[str, list[Nearness]]) -> dict[str, Any]:
    return {head: [asdict(row) for row in rows] for head, rows in tables.items()}


def main() -> None:
    """Measures, prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.tails", description="Compare cheap tails with full ones.")
    parser.add_argument("network", choices=[EMBEDDED, *NETWORKS])
    parser.add_argument("--prompts", type=int, help="number of prompts; default: 32, and 2 for random networks")
    parser.add_argument("--branch-steps", type=int, nargs="+", default=[1, 3, 5], help="of a random network")
    parser.add_argument("--output", type=Path, help="JSON file for the figures; what it has is not measured again")
    chosen = parser.parse_args()
    if chosen.network == EMBEDDED:
        case = embedded(chosen.prompts or 32)
    else:
        case = random_network(chosen.network, chosen.prompts or 2, tuple(chosen.branch_steps))
    steps = [step for step, _ in case.config.branch_counts]
    conditions = {"network": chosen.network, "prompts": len(case.prompts), "branch_steps": steps}
    print("evaluations of the tails of a trajectory: distance, rank correlation, cosine of the advantages")
    for head, rows in measured(case, conditions, chosen.output).items():
        print(f"\n{head}\n{table(rows)}")


if __name__ == "__main__":
    main()
