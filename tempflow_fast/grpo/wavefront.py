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
from .gate import checked_rows
from .shares import Shares
from .tails import MODES, TRUNK, Mode, Tails, mode_numbers


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

    mode: Mode
    rows: Tensor
    """int64 [R]: the trunks, those with the most branches first, then the tails in the order of their branch steps."""
    levels: Tensor
    """int64 [R]: the row of the table with each one's sigma."""
    runs: tuple[Run, ...]
    finished: Tensor
    """int64: positions of the rows that this call finishes."""

    def __len__(self) -> int:
        return len(self.rows)


NumCalls = tuple[int, ...]
"""Network calls of a step by mode, in the order of MODES."""
NO_CALLS: NumCalls = (0,) * len(MODES)


class Wavefront:
    """The calls of a rollout.

    Args:
        branches: the list.
        tails: how branches are finished.
        max_batch: most rows in one call; None: no limit.
        checked: int64 [C], the branches that are finished a second time, by the full tail, as further rows; None: none.
    """

    def __init__(
        self, branches: Branches, tails: Tails, max_batch: int | None = None, checked: Tensor | None = None
    ) -> None:
        self.branches, self.tails, self.max_batch = branches, tails, max_batch
        self.num_steps = tails.main.num_steps
        self.checked = checked = torch.zeros(0, dtype=torch.int64) if checked is None else checked
        own = branches.steps[branches.pair_of_row]
        self.born = torch.cat([own, own[checked]])
        """int64 [R + C], the step at which each branch leaves."""
        lengths, first = torch.zeros(self.num_steps, dtype=torch.int64), torch.zeros(self.num_steps, dtype=torch.int64)
        for step, length in tails.lengths.items():
            lengths[step], first[step] = length, tails.first_rows[step]
        is_check = torch.arange(len(self.born)) >= len(own)
        self._lengths = torch.where(is_check, self.num_steps - 1 - self.born, lengths[self.born])
        # The level of a row at step s is s + shift.
        self._shift = torch.where(is_check, 0, first[self.born] - self.born - 1)
        self._is_check, self._by_step = is_check, self.born.argsort(stable=True)
        self._modes = mode_numbers(tails)

    def _live(self, step: int) -> tuple[Tensor, Tensor]:
        """The trunks and the branches that advance at a step."""
        alive = (self.born < step) & (step <= self.born + self._lengths)
        return (self.branches.last_steps >= step).nonzero().flatten(), self._by_step[alive[self._by_step]]

    def _modes_of(self, step: int, tails: Tensor) -> Tensor:
        return torch.where(self._is_check[tails], MODES.index(TRUNK), self._modes[step + self._shift[tails]])

    def num_rows(self, step: int) -> int:
        """Rows that advance at a step.

        Args:
            step: 0 .. T - 1.
        """
        return sum(map(len, self._live(step)))

    def num_calls(self, step: int) -> NumCalls:
        """Network calls of a step.

        Args:
            step: 0 .. T - 1.
        """
        trunks, tails = self._live(step)
        rows = self._modes_of(step, tails).bincount(minlength=len(MODES))
        rows[MODES.index(TRUNK)] += len(trunks)
        return tuple(len(equal_pieces(count, self.max_batch)) for count in rows.tolist())

    def calls(self, step: int, at_least: NumCalls = NO_CALLS) -> list[Call]:
        """The calls of a step.

        Args:
            step: 0 .. T - 1.
            at_least: number of calls that other processes make; the missing ones have no rows.
        """
        num, here = self.branches.num_trajectories, self.branches.steps == step
        counts = torch.zeros(num, dtype=torch.int64)
        counts[self.branches.trajectories[here]] = self.branches.counts[here]
        trunks, tails = self._live(step)
        trunks = trunks[counts[trunks].argsort(descending=True, stable=True)]
        rows = torch.cat([trunks, num + tails])
        levels = torch.cat([torch.full_like(trunks, step), step + self._shift[tails]])
        leaving = torch.cat([counts[trunks], torch.zeros_like(tails)])
        ends = torch.cat([torch.zeros_like(trunks), self.born[tails] + self._lengths[tails] == step])
        modes = torch.cat([torch.full_like(trunks, MODES.index(TRUNK)), self._modes_of(step, tails)])
        calls = []
        for number, (mode, least) in enumerate(zip(MODES, at_least, strict=True)):
            members = (modes == number).nonzero().flatten()
            for place in equal_pieces(len(members), self.max_batch, least):
                piece = members[place]
                runs = _runs(levels[piece], leaving[piece])
                calls.append(Call(mode, rows[piece], levels[piece], runs, ends[piece].nonzero().flatten()))
        return calls

    def finished_at_birth(self, step: int) -> Tensor:
        """The branches that leave at a step and have no tail.

        Args:
            step: 0 .. T - 1.

        Returns:
            int64, positions among the branches.
        """
        return ((self.born == step) & (self._lengths == 0)).nonzero().flatten()


def _runs(levels: Tensor, leaving: Tensor) -> tuple[Run, ...]:
    if not len(levels):
        return ()
    changes = ((levels.diff() != 0) | (leaving.diff() != 0)).nonzero().flatten() + 1
    bounds = [0, *changes.tolist(), len(levels)]
    return tuple(Run(slice(first, last), int(levels[first]), int(leaving[first])) for first, last in pairwise(bounds))


def process_waves(
    branches: Branches, shares: Shares, tails: Tails, max_batch: int | None = None, checked: Tensor | None = None
) -> list[Wavefront]:
    """The rollout of every process; processes whose rollouts are alike share one.

    Args:
        branches: of all processes.
        shares: which process has which trajectories.
        tails: how branches are finished.
        max_batch: most rows in one call; None: no limit.
        checked: int64 [C], the branches that are finished a second time, in ascending order; None: none.
    """
    if branches.common_steps is not None and (checked is None or not len(checked)):
        return [Wavefront(branches.of(shares.carried), tails, max_batch)] * shares.num_processes
    return [
        Wavefront(
            branches.of(shares.carried_by(process)),
            tails,
            max_batch,
            None if checked is None else checked_rows(branches, own, checked),
        )
        for process, own in enumerate(shares.by_process)
    ]


def least_calls(waves: Sequence[Wavefront]) -> list[NumCalls]:
    """The network calls that every process makes at each step: as many as the fullest one needs.

    Args:
        waves: of every process.

    Returns:
        [T].
    """
    numbers = [[wave.num_calls(step) for wave in set(waves)] for step in range(waves[0].num_steps)]
    return [tuple(map(max, zip(*of_step, strict=True))) for of_step in numbers]
