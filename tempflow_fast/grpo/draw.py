"""At which of the branch steps a trajectory branches, where it does not branch at all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..ops import noise
from ..settings.iteration import GRPOConfig
from .branches import Branches

ITERATIONS = 2**32
"""The seed of an iteration in a run is its number modulo this."""
PER_STEP = 2**20
"""Probabilities are multiples of 1 / (B PER_STEP), so that equal ones are equal and no rounding decides a draw."""


def drawn_branches(config: GRPOConfig, num_trajectories: int, seed: int) -> Branches:
    """The list of branches of one iteration.

    Without `branches_per_trajectory`, every trajectory branches at every branch step. With it:

    - "weighted": each trajectory draws m of the B branch steps, step b with probability p_b (sum m). Its pairs have the
      weight m / (B p_b), so that the mean over the drawn pairs has the expectation of the mean over all pairs: the
      expected gradient does not change. The draw is a function of (seed, trajectory); with prompt groups, of (seed,
      prompt), so that groups stay whole.
    - "rotating": in iteration t, all trajectories branch at the steps number m t, m t + 1, ..., m t + m - 1, modulo B.
      The iteration is that of a run, the lower 32 bits of the seed.
    - "staggered": the same, with the turn t P + p of prompt p instead of t.
    - "random": m consecutive steps, all B - m + 1 places alike; a function of the same as "weighted".
    - "progressive": m consecutive steps from number floor(t / window_iterations) modulo B - m + 1 on.

    All but "weighted" have the weights 1.

    Args:
        config: the settings.
        num_trajectories: N.
        seed: of the iteration, as for `grpo_step`.
    """
    counts, m = config.branch_counts, config.branches_per_trajectory
    if m is None:
        return Branches.everywhere(num_trajectories, dict(counts))
    if config.branch_draw == "weighted":
        line = draw_line(config, m)
        marked = line.marked(_random(config, num_trajectories, seed, line.unit))
        weights = m / (len(counts) * torch.tensor(line.probabilities, dtype=torch.float64))
    else:
        windows = _windows(config, m)
        turns = _turns(config, num_trajectories, seed, len(windows))
        marked = torch.zeros(num_trajectories, len(counts), dtype=torch.bool).scatter(1, windows[turns], True)
        weights = torch.ones(len(counts), dtype=torch.float64)
    trajectories, drawn = marked.nonzero(as_tuple=True)
    steps, numbers = (torch.tensor(column) for column in zip(*counts, strict=True))
    return Branches(num_trajectories, trajectories, steps[drawn], numbers[drawn], weights[drawn])


def possible_draws(config: GRPOConfig) -> list[tuple[float, tuple[int, ...]]]:
    """Every set of branch steps that a trajectory may have.

    Args:
        config: the settings.

    Returns:
        (probability, or share of the iterations; places among the branch steps).
    """
    m = config.branches_per_trajectory
    if m is None:
        return [(1.0, tuple(range(len(config.branch_counts))))]
    if config.branch_draw == "weighted":
        return draw_line(config, m).possible()
    windows = _windows(config, m).tolist()
    return [(1 / len(windows), tuple(places)) for places in windows]


def step_shares(config: GRPOConfig) -> dict[int, float]:
    """Branch step -> the share of the draws that have it.

    Args:
        config: the settings.
    """
    draws, steps = possible_draws(config), [step for step, _ in config.branch_counts]
    return {step: sum(p for p, places in draws if place in places) for place, step in enumerate(steps)}


def _windows(config: GRPOConfig, num_drawn: int) -> Tensor:
    """The sets of branch steps that are drawn without weights: int64 [n, m], in the order of their turns."""
    num_steps, within = len(config.branch_counts), torch.arange(num_drawn)
    if config.branch_draw in ("rotating", "staggered"):
        return (num_drawn * torch.arange(num_steps)[:, None] + within) % num_steps
    return torch.arange(num_steps - num_drawn + 1)[:, None] + within


def _turns(config: GRPOConfig, num_trajectories: int, seed: int, num_turns: int) -> Tensor:
    """The turn of each trajectory, int64 [N], in 0 .. num_turns - 1."""
    iteration, prompts = seed % ITERATIONS, torch.arange(num_trajectories) // config.num_seeds
    if config.branch_draw == "random":
        return _random(config, num_trajectories, seed, num_turns)
    if config.branch_draw == "staggered":
        return (iteration * (num_trajectories // config.num_seeds) + prompts) % num_turns
    turn = iteration // config.window_iterations if config.branch_draw == "progressive" else iteration
    return torch.full((num_trajectories,), turn % num_turns)


def _random(config: GRPOConfig, num_trajectories: int, seed: int, bound: int) -> Tensor:
    """Uniform integers in 0 .. bound - 1, int64 [N]; with prompt groups, the same for a prompt's trajectories."""
    keys = torch.arange(num_trajectories) // (config.num_seeds if config.group == "prompt" else 1)
    # Initial noise has branch 0 of its step; branch 1 of that step is free for this.
    words = noise.words(keys, torch.tensor(seed), noise.INITIAL_NOISE_STEP, 2, 1)[:, 1, 0]
    return words * bound >> 32


def draw_line(config: GRPOConfig, num_drawn: int) -> Line:
    """The probabilities of the branch steps with branches.

    Args:
        config: the settings.
        num_drawn: m.
    """
    if config.branch_probabilities is None:
        return Line.of_sizes((1.0,) * len(config.branch_counts), num_drawn)
    return Line.of_sizes([size for _, size in config.per_step("branch_probabilities")], num_drawn)


@dataclass(frozen=True)
class Line:
    """Systematic sampling: the probabilities follow one another on a line, with marks at a random offset and then every
    1; what has a mark is drawn."""

    lengths: tuple[int, ...]
    """The probabilities, as integers."""
    unit: int
    """The integer that stands for 1."""

    @classmethod
    def of_sizes(cls, sizes: Sequence[float], num_drawn: int) -> Line:
        """Probabilities in proportion to sizes, at most 1 each and `num_drawn` in all.

        Args:
            sizes: B positive numbers.
            num_drawn: m, at most B.
        """
        unit, certain = len(sizes) * PER_STEP, set[int]()
        while True:
            rest = [place for place in range(len(sizes)) if place not in certain]
            scale = (num_drawn - len(certain)) / sum(sizes[place] for place in rest) if rest else 0.0
            more = {place for place in rest if sizes[place] * scale >= 1}
            certain |= more
            if not more:
                break
        lengths = [unit if place in certain else max(round(size * scale * unit), 1) for place, size in enumerate(sizes)]
        if rest:  # what rounding has added or lost goes to the likeliest of those that are not certain
            lengths[max(rest, key=lengths.__getitem__)] += num_drawn * unit - sum(lengths)
        return cls(tuple(lengths), unit)

    @property
    def probabilities(self) -> tuple[float, ...]:
        """[B]."""
        return tuple(length / self.unit for length in self.lengths)

    def marked(self, offsets: Tensor) -> Tensor:
        """What is drawn.

        Args:
            offsets: int64 [n], uniform in 0 .. unit - 1.

        Returns:
            bool [n, B], with m true values in every row.
        """
        ends = torch.tensor([0, *self.lengths]).cumsum(0)
        below = (ends - offsets[:, None] + self.unit - 1).div(self.unit, rounding_mode="floor")
        return below.diff(dim=1) > 0

    def possible(self) -> list[tuple[float, tuple[int, ...]]]:
        """Every set of places that can be drawn: (probability, places); the probabilities add up to 1."""
        ends = torch.tensor(self.lengths).cumsum(0) % self.unit
        offsets = sorted({0, self.unit, *ends.tolist()})
        sets: dict[tuple[int, ...], int] = {}
        for row, (first, last) in zip(self.marked(torch.tensor(offsets[:-1])), pairwise(offsets), strict=True):
            places = tuple(row.nonzero().flatten().tolist())
            sets[places] = sets.get(places, 0) + last - first
        return [(length / self.unit, places) for places, length in sets.items()]
