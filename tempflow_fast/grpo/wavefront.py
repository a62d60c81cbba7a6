"""Which rows are in which network call of a rollout, and how each moves: planned on the host, before any is made.

The trunks and the tails of all earlier branches advance together, so that each step is one network call. Rows are
numbered 0 .. N - 1 for the trunks, then one per branch in the order of the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..batching import equal_pieces
from .branches import Branches
from .shares import Shares


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a call that move alike."""

    rows: slice
    """Positions in the call."""
    level: int
    """The row of the table with their coefficients."""
    num_branches: int
    """K branches leave each of these rows; 0: none."""


@dataclass(frozen=True, eq=False)
class Call:
    """One network call, and the moves that follow it."""

    rows: Tensor
    """int64 [R]: the trunks, those with the most branches first, then the tails in the order of their branch steps."""
    levels: Tensor
    """int64 [R]: the row of the table with each one's sigma."""
    runs: tuple[Run, ...]
    finished: Tensor
    """int64: positions of the rows that this call finishes."""

    def __len__(self) -> int:
        return len(self.rows)


class Wavefront:
    """The calls of a rollout.

    Args:
        branches: the list.
        num_steps: T.
        max_batch: most rows in one call; None: no limit.
    """

    def __init__(self, branches: Branches, num_steps: int, max_batch: int | None = None) -> None:
        self.branches, self.num_steps, self._max_batch = branches, num_steps, max_batch
        self._born = branches.steps[branches.pair_of_row]
        self._by_step = self._born.argsort(stable=True)

    def num_rows(self, step: int) -> int:
        """Rows that advance at a step.

        Args:
            step: 0 .. T - 1.
        """
        return int((self.branches.last_steps >= step).sum()) + int((self._born < step).sum())

    def num_calls(self, step: int) -> int:
        """Network calls of a step.

        Args:
            step: 0 .. T - 1.
        """
        return len(equal_pieces(self.num_rows(step), self._max_batch))

    def calls(self, step: int, at_least: int = 0) -> list[Call]:
        """The calls of a step.

        Args:
            step: 0 .. T - 1.
            at_least: number of calls that other processes make; the missing ones have no rows.
        """
        num, counts = self.branches.num_trajectories, torch.zeros(self.branches.num_trajectories, dtype=torch.int64)
        here = self.branches.steps == step
        counts[self.branches.trajectories[here]] = self.branches.counts[here]
        trunk = (self.branches.last_steps >= step).nonzero().flatten()
        trunk = trunk[counts[trunk].argsort(descending=True, stable=True)]
        tails = self._by_step[self._born[self._by_step] < step]
        rows, leaving = torch.cat([trunk, num + tails]), torch.cat([counts[trunk], torch.zeros_like(tails)])
        levels, ends = torch.full_like(rows, step), (rows >= num) & (step == self.num_steps - 1)
        pieces = equal_pieces(len(rows), self._max_batch, at_least)
        return [
            Call(rows[piece], levels[piece], _runs(levels[piece], leaving[piece]), ends[piece].nonzero().flatten())
            for piece in pieces
        ]

    def finished_at_birth(self, step: int) -> Tensor:
        """The branches that leave at a step and have no tail.

        Args:
            step: 0 .. T - 1.

        Returns:
            int64, positions in the list of branches.
        """
        return ((self._born == step) & (step == self.num_steps - 1)).nonzero().flatten()


def _runs(levels: Tensor, leaving: Tensor) -> tuple[Run, ...]:
    if not len(levels):
        return ()
    changes = ((levels.diff() != 0) | (leaving.diff() != 0)).nonzero().flatten() + 1
    bounds: Sequence[int] = [0, *changes.tolist(), len(levels)]
    return tuple(Run(slice(first, last), int(levels[first]), int(leaving[first])) for first, last in pairwise(bounds))


def least_calls(branches: Branches, shares: Shares, num_steps: int, max_batch: int | None) -> list[int]:
    """The network calls that every process makes at each step: as many as the fullest one needs.

    Args:
        branches: of all processes.
        shares: which process carries which trajectories.
        num_steps: T.
        max_batch: most rows in one call; None: no limit.

    Returns:
        [T].
    """
    carried = [shares.carried_by(process) for process in range(shares.num_processes)]
    waves = [Wavefront(branches.of(trajectories), num_steps, max_batch) for trajectories in carried]
    return [max(wave.num_calls(step) for wave in waves) for step in range(num_steps)]
