"""How a branch is finished: the noise levels of its tail, the solver, and what its network calls may save.

Only the branch step has a density; everything after it is the environment. So a tail may have fewer steps, another
solver, lower precision or less guidance without any correction, as long as the order of the rewards in a group
survives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import require
from ..ops.schedule import StepTable
from ..settings.iteration import GRPOConfig, TailSolver


class Mode(NamedTuple):
    """What the rows of one network call share."""

    tail: bool
    """Computed in the precision of tails."""
    guided: bool
    """Computed with guidance, if there is any."""


TRUNK = Mode(tail=False, guided=True)
"""Of trunks, and of tails without settings of their own."""
MODES = (TRUNK, Mode(tail=False, guided=False), Mode(tail=True, guided=True), Mode(tail=True, guided=False))


@dataclass(frozen=True, eq=False)
class Tails:
    """The tail of each branch step, as consecutive rows of one table, one per network call.

    The multistep solvers are Euler steps by a corrected velocity v + c (m - m of the step before), where m is what the
    solver remembers of each step.
    """

    main: StepTable
    """The schedule of the rollout."""
    table: StepTable
    """The rows of `main`, then those of the tails that do not simply follow `main`."""
    first_rows: dict[int, int]
    """Branch step -> the first row of its tails."""
    lengths: dict[int, int]
    """Branch step -> the number of rows, which may be 0."""
    corrections: tuple[float, ...]
    """c of each row of the table; 0: none."""
    modes: tuple[Mode, ...]
    """The mode of each row of the table, for tails."""
    solver: TailSolver = "euler"

    def remembered(self, row: int, latents: Tensor, velocity: Tensor) -> Tensor:
        """m: the velocity for ab2, the prediction of the image for dpmpp_2m.

        Args:
            row: of the table.
            latents: x, [R, *shape].
            velocity: v, already guided, [R, *shape].
        """
        return velocity if self.solver == "ab2" else latents - float(self.table.sigma[row]) * velocity


def full_tails(table: StepTable) -> Tails:
    """Tails that follow the schedule of the rollout by Euler steps.

    Args:
        table: the schedule.
    """
    return make_tails(table, {step: table.num_steps - 1 - step for step in table.branch_steps})


def tails_of(config: GRPOConfig, table: StepTable) -> Tails:
    """The tails of the settings.

    Args:
        config: the settings.
        table: the schedule of the rollout.
    """
    own_precision, positions = config.tail_precision is not None, config.tail_positions
    lengths = dict(config.tail_lengths)
    return make_tails(table, lengths, config.tail_solver, own_precision, config.tail_guidance, positions)


def make_tails(
    table: StepTable,
    lengths: dict[int, int],
    solver: TailSolver = "euler",
    own_precision: bool = False,
    guidance: tuple[float, float] | None = None,
    positions: Mapping[int, Sequence[float]] | None = None,
) -> Tails:
    """Tails of given lengths.

    Args:
        table: the schedule of the rollout.
        lengths: branch step -> number of network calls of a tail.
        solver: how they move.
        own_precision: whether their network calls have a precision of their own.
        guidance: lowest and highest sigma with guidance; None: all have it.
        positions: branch step -> the positions in the schedule of the levels inside its tails, one less than its
            length; without those of a step, its levels are uniform in the schedule.

    Raises:
        ValueError: for a tail without calls where steps remain, with more calls than steps, or with positions that do
            not fit.
    """
    for step, length in lengths.items():
        rest = table.num_steps - 1 - step
        require(min(rest, 1) <= length <= rest, "make_tails", "lengths", f"in 1..{rest} at step {step}", length)
    for step, inner in (positions or {}).items():
        number, limits = max(lengths[step] - 1, 0), (step + 1, table.num_steps)
        ascending = all(a < b for a, b in pairwise((limits[0], *inner, limits[1])))
        expected = f"{number} ascending ones between {limits[0]} and {limits[1]} at step {step}"
        require(len(inner) == number and ascending, "make_tails", "positions", expected, inner)
    num_steps, levels = table.num_steps, [*table.sigma.tolist(), float(table.sigma_next[-1])]
    first_rows, grids, corrections = {}, [], [0.0] * num_steps
    for step, length in lengths.items():
        inner = (positions or {}).get(step, uniform_positions(step + 1, num_steps, length))
        follows_main = solver == "euler" and list(inner) == list(range(step + 2, num_steps))
        first_rows[step] = step + 1 if follows_main else len(corrections)
        if not follows_main and length:
            grids.append(levels_at(levels, [step + 1, *inner, num_steps]))
            corrections += multistep_corrections(grids[-1], solver)
    extended = table.followed_by(grids) if grids else table
    low, high = guidance or (-math.inf, math.inf)
    modes = tuple(Mode(own_precision, low <= sigma <= high) for sigma in extended.sigma.tolist())
    return Tails(table, extended, first_rows, dict(lengths), tuple(corrections), modes, solver)


def uniform_positions(first: int, last: int, num_steps: int) -> list[float]:
    """The positions in the schedule of the levels inside a tail that is uniform in it: first + j (last - first) / n.

    Args:
        first: the position of the branch.
        last: T, that of the image.
        num_steps: n, at least 1; 1 is the prediction of the image from the branch.

    Returns:
        n - 1 positions; one that is no integer is between two levels.
    """
    return [first + place * (last - first) / num_steps for place in range(1, num_steps)]


def levels_at(levels: Sequence[float], positions: Sequence[float]) -> list[float]:
    """Noise levels by position, on the line between two levels where that is no integer.

    Args:
        levels: the T + 1 levels of the schedule.
        positions: in 0..T.
    """
    found = []
    for position in positions:
        whole = min(int(position), len(levels) - 2)
        found.append(levels[whole] + (position - whole) * (levels[whole + 1] - levels[whole]))
    return found


def multistep_corrections(levels: Sequence[float], solver: TailSolver) -> list[float]:
    """c of each step of a tail; the first step has no history.

    - ab2, Adams-Bashforth of second order: x + h_j ((1 + r/2) v_j - r/2 v_{j-1}) with r = h_j / h_{j-1}, so c = r / 2
      for m = v.
    - dpmpp_2m, DPM-Solver++ (arXiv 2211.01095) with two steps in its midpoint form, as diffusers'
      DPMSolverMultistepScheduler defines it for flow sigmas: with lambda = log((1 - sigma) / sigma), its first order is
      the Euler step, and its second adds (sigma_j - sigma_{j+1}) / (2 sigma_j r) (m_j - m_{j-1}) for m = x - sigma v
      and r = (lambda_j - lambda_{j-1}) / (lambda_{j+1} - lambda_j), so c = -1 / (2 r sigma_j). The step to sigma = 0 is
      of first order.

    Args:
        levels: n + 1 noise levels.
        solver: which one.

    Returns:
        [n].
    """
    corrections = [0.0] * (len(levels) - 1)
    for j in range(1, len(corrections)):
        before, here, after = levels[j - 1 : j + 2]
        if solver == "ab2":
            corrections[j] = (after - here) / (here - before) / 2
        if solver == "dpmpp_2m" and after > 0:
            snr = [math.log((1 - sigma) / sigma) for sigma in (before, here, after)]
            corrections[j] = -(snr[2] - snr[1]) / (snr[1] - snr[0]) / (2 * here)
    return corrections


def mode_numbers(tails: Tails) -> Tensor:
    """int64 [rows of the table], the position of each row's mode in MODES.

    Args:
        tails: the tails.
    """
    return torch.tensor([MODES.index(mode) for mode in tails.modes])
