"""Levels of short tails: those of the schedule that bring a few branches nearest to the ends of their full tails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..batching import equal_pieces
from ..ops.schedule import StepTable
from ..policies import compiled
from ..policies.base import Condition, Policy
from ..policies.evaluated import evaluated
from ..processes import Processes
from ..settings.iteration import GRPOConfig
from .acting import acting_network, start_of
from .rollout import rollout
from .tails import levels_at, uniform_positions

NUM_TRUNKS = 16
"""Trunks on which levels are chosen."""
GAIN = 0.1
"""Share of the distance that chosen levels must save before they replace uniform ones."""


@dataclass
class ChosenLevels:
    """The levels inside short tails, for every length that a tail may have."""

    positions: dict[int, list[list[float]]] = field(default_factory=dict)
    """Branch step -> for tails of 1, 2, ... calls, the positions of their levels in the schedule; empty: not chosen."""

    def fits(self, config: GRPOConfig) -> bool:
        """Whether there are levels for the branch steps of the settings and all lengths of their tails.

        Args:
            config: the settings of a run.
        """
        wanted = longest_tails(config)
        has_steps = self.positions.keys() == wanted.keys()
        return has_steps and all(len(self.positions[step]) >= length for step, length in wanted.items())

    def applied(self, config: GRPOConfig) -> GRPOConfig:
        """The settings of an iteration.

        Args:
            config: those of the run, with the tails of that iteration.

        Returns:
            The same with levels by their positions; `config` itself where its levels are not to be chosen.
        """
        if config.tail_levels != "nearest":
            return config
        lengths = dict(config.tail_lengths)
        inner = (place for step, length in lengths.items() if length for place in self.positions[step][length - 1])
        return replace(config, tail_steps=config.as_table(lengths, 1), tail_levels=tuple(inner))

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint keeps; `from_json` reads it."""
        return {str(step): by_length for step, by_length in self.positions.items()}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ChosenLevels:
        """The levels as they were.

        Args:
            facts: what `as_json` returned.
        """
        return cls({int(step): [list(map(float, inner)) for inner in by_length] for step, by_length in facts.items()})


def longest_tails(config: GRPOConfig) -> dict[int, int]:
    """Branch step -> the most network calls that its tails may have; none where there are no levels to choose.

    Args:
        config: the settings of a run.
    """
    if config.tail_levels != "nearest":
        return {}
    return dict((config.with_full_tails() if config.tail_steps == "adaptive" else config).tail_lengths)


def num_choice_rows(config: GRPOConfig, num_trunks: int = NUM_TRUNKS) -> int:
    """Rows in the network calls of `nearest_levels`.

    Args:
        config: the settings of a run.
        num_trunks: how many trunks there are.
    """
    longest, rests = longest_tails(config), dict(config.with_full_tails().tail_lengths)
    if not longest:
        return 0
    full = max(longest) + 1 + sum(rests.values())
    tried = (
        length * (rests[step] - length + 1 + 1)  # each level that is left, and the uniform ones
        for step, most in longest.items()
        for length in range(2, most + 1)
        if length < rests[step]
    )
    return num_trunks * (full + sum(tried))


def with_levels(config: GRPOConfig, policy: Policy, prompts: Sequence[Mapping[str, Any]], seed: int) -> GRPOConfig:
    """The settings with their levels chosen; as they are where there is nothing to choose.

    Args:
        config: the settings.
        policy: the policy; it does not change.
        prompts: as in `nearest_levels`.
        seed: key of the noise.
    """
    return nearest_levels(config, policy, prompts, seed).applied(config)


def nearest_levels(
    config: GRPOConfig,
    policy: Policy,
    prompts: Sequence[Mapping[str, Any]],
    seed: int = 0,
    processes: Processes | None = None,
) -> ChosenLevels:
    """Chooses the levels of short tails on a few trunks, for `tail_levels="nearest"`.

    From each trunk a branch leaves at each branch step. Levels of the schedule are added one by one, each time the one
    with which Euler steps from the branches end nearest to the full tails (root mean square over the latents). For each
    length, the levels so found are taken where they end nearer than levels uniform in the schedule by the share GAIN.

    Args:
        config: the settings of a run.
        policy: the policy; it does not change.
        prompts: as `{"prompt": text, ...}`; the first few are used, each with a trunk.
        seed: key of the noise.
        processes: those that share the run, which all choose the same; None: this process alone.

    Returns:
        The levels; `applied` gives the settings of an iteration.
    """
    longest, processes = longest_tails(config), processes or Processes()
    if not longest:
        return ChosenLevels()
    entries, table = [dict(entry) for entry in prompts[:NUM_TRUNKS]], config.table(policy)
    texts, ids = [entry["prompt"] for entry in entries], list(range(len(entries)))
    condition, noise = start_of(policy, texts, entries, ids, config, seed)
    calls = _Calls(policy, condition, table, config)
    # Too many sizes of calls to compile for each of them.
    with torch.no_grad(), compiled.uncompiled(), acting_network(policy, config):
        drawn = rollout(policy, condition, table, noise, 1, seed, None, calls.limit, config.guidance_scale)
        starts, ends = (of_steps[:, :, 0].unbind(1) for of_steps in (drawn.branches, drawn.latents))
        return ChosenLevels(
            {
                step: _by_length(calls, step + 1, length, start, end, processes)
                for (step, length), start, end in zip(longest.items(), starts, ends, strict=True)
            }
        )


def _by_length(
    calls: _Calls, first: int, longest: int, start: Tensor, end: Tensor, processes: Processes
) -> list[list[float]]:
    """The positions inside tails of 1, 2, ..., `longest` calls from `start` [N, *shape], at position `first`."""
    last = len(calls.levels) - 1
    left, order, found = list(range(first + 1, last)), list[int](), list[list[float]]()
    for length in range(1, longest + 1):
        uniform = uniform_positions(first, last, length)
        found.append(uniform)
        if not 1 < length < last - first:  # no level, or all of them
            continue
        tried = [list(map(float, sorted([*order, place]))) for place in left]
        ends = calls.tails(start, [levels_at(calls.levels, [first, *inner, last]) for inner in (*tried, uniform)])
        distances: list[float] = processes.max((ends - end).square().flatten(1).mean(1)).sqrt().tolist()
        of_uniform = distances.pop()
        nearest = min(range(len(left)), key=distances.__getitem__)
        order.append(left.pop(nearest))
        if distances[nearest] < (1 - GAIN) * of_uniform:
            found[-1] = tried[nearest]
    return found


class _Calls:
    """Euler steps of a few latents from level to level, many at once."""

    def __init__(self, policy: Policy, condition: Condition, table: StepTable, config: GRPOConfig) -> None:
        self.policy, self.condition, self.scale = policy, condition, config.guidance_scale
        self.levels = [*table.sigma.tolist(), float(table.sigma_next[-1])]
        most = max(count for _, count in config.branch_counts)
        self.limit = config.max_batch or most * len(condition)  # the rollout has calls of as many rows

    def tails(self, start: Tensor, grids: Sequence[Sequence[float]]) -> Tensor:
        """Finishes latents over several grids.

        Args:
            start: [N, *shape].
            grids: the levels of each, all of one length.

        Returns:
            [number of grids, N, *shape].
        """
        latents = start.repeat(len(grids), *[1] * (start.dim() - 1))
        for levels in pairwise(torch.tensor(grids, dtype=torch.float64).T):
            here, after = (level.repeat_interleave(len(start)).to(start) for level in levels)
            latents = self._moved(latents, here, after)
        return latents.view(len(grids), *start.shape)

    def _moved(self, latents: Tensor, here: Tensor, after: Tensor) -> Tensor:
        """Rows [m N, *shape] by an Euler step each, from the levels `here` to those `after`, [m N]."""
        owners, moved = torch.arange(len(latents)) % len(self.condition), []
        for piece in equal_pieces(len(latents), self.limit):
            rows, condition = latents[piece], self.condition[owners[piece]]
            velocity, uncond = evaluated(self.policy, rows, here[piece], condition, self.scale)
            if uncond is not None:
                velocity = ops.guided_velocity(velocity, uncond, self.scale)
            moved.append(rows + (after - here)[piece].view(-1, *[1] * (rows.dim() - 1)) * velocity)
        return torch.cat(moved)
