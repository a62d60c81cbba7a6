"""Who does what in an iteration, and what it costs: solved from the settings, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..batching import equal_pieces
from ..choices import NOISELESS
from ..errors import instance, integer, require
from ..ops.schedule import linear_sigmas, step_table
from ..policies.base import guides
from ..settings.iteration import GRPOConfig
from .branches import Branches
from .budget import BACKWARD, FLOOR, mixed_sizes
from .draw import Line, draw_line, drawn_branches, possible_draws, step_shares
from .gate import gated_trajectories
from .levels import NUM_TRUNKS, num_choice_rows
from .meter import check_halves
from .shares import Shares
from .tails import Tails, tails_of
from .update import training_plans
from .wavefront import Call, Wavefront, least_calls, process_waves

SHOWN = 8
"""Most processes that are listed one by one."""


@dataclass(frozen=True)
class Cost:
    """Rows of an iteration, all processes together. Guidance evaluates each row of a network call twice, unless the
    model takes the guidance scale as an input."""

    name: str
    rollout: int
    """Rows evaluated to draw the images."""
    trained: int
    """Rows run forward and backward."""
    extra: int
    """Rows run forward for velocity_old and velocity_ref."""
    images: int
    """Images decoded and scored."""

    @property
    def total(self) -> int:
        """In forward passes of one row."""
        return self.rollout + (1 + BACKWARD) * self.trained + self.extra


@dataclass(frozen=True)
class Work:
    """The part of one process. Training counts assume that every pair has a signal; others are not run."""

    trajectories: tuple[int, ...]
    """Global ids."""
    num_carried: int
    """Trajectories that the rollout carries, one of them padding where other processes have one more."""
    most_rows: int
    """Rows of the fullest step of the rollout."""
    num_images: int
    pairs: tuple[int, ...]
    """(trajectory, branch step) pairs of each update."""


@dataclass(frozen=True)
class Geometry:
    """An iteration: N = P S trajectories and their branches, dealt to the processes.

    Print it for a one-page summary. Raises ValueError for fewer than one prompt, process, or trajectory per update.
    """

    config: GRPOConfig
    num_prompts: int
    num_processes: int = 1
    seed: int = 0
    """Of the iteration: where branch steps are drawn, iterations differ."""

    def __post_init__(self) -> None:
        instance("Geometry", "config", self.config, GRPOConfig, "a GRPOConfig")
        for name in ("num_prompts", "num_processes"):
            require(integer("Geometry", name, getattr(self, name)) >= 1, "Geometry", name, ">= 1", getattr(self, name))
        num_updates, limit = self.config.num_updates, self.num_trajectories
        require(num_updates <= limit, "Geometry", "num_updates", f"at most the {limit} trajectories", num_updates)
        check_halves("Geometry", self.config, self.num_prompts)

    @property
    def num_trajectories(self) -> int:
        """N."""
        return self.num_prompts * self.config.num_seeds

    @cached_property
    def branches(self) -> Branches:
        """The list of all processes."""
        return drawn_branches(self.config, self.num_trajectories, self.seed)

    @cached_property
    def images(self) -> Branches:
        """What is finished and scored: every branch, or one image per trajectory that takes the noisy steps itself."""
        return self.branches if self.config.trunk == "ode" else self.branches.last_of_each()

    @cached_property
    def shares(self) -> list[Shares]:
        """What each process has."""
        n, c = self.num_trajectories, self.config
        return [Shares(n, c.num_updates, self.num_processes, index) for index in range(self.num_processes)]

    @cached_property
    def work(self) -> list[Work]:
        """The part of each process."""
        return [self._work(shares, wave) for shares, wave in zip(self.shares, self._waves, strict=True)]

    def _work(self, shares: Shares, wave: Wavefront) -> Work:
        own = set(shares.own)
        updates = [sorted(own.intersection(shares.in_update(number))) for number in range(shares.num_updates)]
        return Work(
            trajectories=tuple(shares.own),
            num_carried=len(shares.carried),
            most_rows=self._most_rows(shares, wave),
            num_images=len(self.images.rows_of(shares.own)),
            pairs=tuple(len(self.branches.pairs_of(update)) for update in updates),
        )

    def _most_rows(self, shares: Shares, wave: Wavefront) -> int:
        if self.config.trunk == "sde":
            return len(shares.carried)
        return max(wave.num_rows(step) for step in range(self.config.num_steps))

    @cached_property
    def _waves(self) -> list[Wavefront]:
        return self._waves_with([])

    def _waves_with(self, gated: Sequence[int]) -> list[Wavefront]:
        """The rollouts of all processes, where the branches of some trajectories are finished by the full tail too."""
        checked = self.branches.rows_of(gated)
        return process_waves(self.branches, self.shares[0], self._tails, self.config.max_batch, checked)

    @cached_property
    def _tails(self) -> Tails:
        """The tails of the settings; without `sigmas`, on a schedule whose levels are only about the policy's."""
        c = self.config
        sigmas = linear_sigmas(c.num_steps) if c.sigmas is None else c.sigmas
        return tails_of(c, step_table(sigmas, NOISELESS))

    @property
    def rollout_calls(self) -> int:
        """Network calls of the rollout, in every process."""
        if self.config.trunk == "sde":
            return self.config.num_steps * len(equal_pieces(len(self.shares[0].carried), self.config.max_batch))
        return sum(map(sum, least_calls(self._waves)))

    @cached_property
    def _calls(self) -> list[Call]:
        """The network calls of the first process, which has the most."""
        wave, least = self._waves[0], least_calls(self._waves)
        return [call for step, number in enumerate(least) for call in wave.calls(step, number)]

    @property
    def captured_rows(self) -> int:
        """Rows of all network calls of different sizes together: each has a graph of its own, if they are captured."""
        return 0 if self.config.trunk == "sde" else sum(set(map(len, self._calls)))

    @property
    def most_finished(self) -> int:
        """The most branches that are finished, and decoded, at once in a process."""
        if self.config.trunk == "sde":
            return len(self.shares[0].carried)
        wave = self._waves[0]
        at_birth = [len(wave.finished_at_birth(step)) for step in range(wave.num_steps)]
        return max(*at_birth, *(len(call.finished) for call in self._calls))

    @cached_property
    def rollout_rows(self) -> int:
        """Rows in the network calls of the rollout, all processes together; a call without rows takes one."""
        if self.config.trunk == "sde":
            return self.config.num_steps * sum(len(shares.carried) for shares in self.shares)
        return _num_rows(self._waves)

    @property
    def gate(self) -> tuple[int, int]:
        """What a gate adds to an iteration: rows in the network calls, and images."""
        if self.config.gate_every is None:
            return 0, 0
        gated = gated_trajectories(self.config, self.num_trajectories, 0)
        added = _num_rows(self._waves_with(gated)) - self.rollout_rows
        return added, len(self.branches.rows_of(gated))

    @property
    def training_calls(self) -> tuple[int, ...]:
        """Forward and backward calls of each update, in every process: as many as the fullest one needs."""
        has_signal = torch.ones(self.branches.num_pairs, dtype=torch.bool)
        return tuple(map(len, training_plans(has_signal, self.branches, self.shares[0], self.config)))

    def costs(self) -> tuple[Cost, Cost, Cost]:
        """This package, its branches as the authors' scripts would run them, and Flow-GRPO with groups of S K images.

        Flow-GRPO trains every step but the last, whichever steps have branches here.
        """
        c, n, own = self.config, self.num_trajectories, self.branches
        has_reference = c.beta > 0
        acting = sum(len(own.pairs_of(range(update, n, c.num_updates))) for update in range(1, c.num_updates))
        samples = n * max(count for _, count in c.branch_counts)
        flow = samples * (c.num_steps - 1)
        alone = Wavefront(own, tails_of(c.with_full_tails(), self._tails.main))
        rollout = sum(alone.num_rows(step) for step in range(c.num_steps))
        return (
            Cost(
                "tempflow-fast",
                self.rollout_rows,
                own.num_pairs,
                acting + has_reference * own.num_pairs,
                self.images.num_rows,
            ),
            Cost("TempFlow-GRPO's scripts", rollout, own.num_rows, has_reference * own.num_rows, own.num_rows),
            Cost("Flow-GRPO", samples * c.num_steps, flow, has_reference * flow, samples),
        )

    def __str__(self) -> str:
        tables = (self._step_table(), self._work_table(), self._cost_table())
        return "\n".join([self._summary(), *(line for table in tables for line in ("", *table))])

    def _summary(self) -> str:
        c = self.config
        counts = [count for _, count in c.branch_counts]
        each = f"{counts[0]}" if len(set(counts)) == 1 else ", ".join(map(str, counts))
        some = "" if c.branches_per_trajectory is None else f"{c.branches_per_trajectory} of "
        return (
            f"{self.num_prompts} prompts x {c.num_seeds} seeds = {self.num_trajectories} trajectories, each with "
            f"{each} branches at {some}{len(counts)} of {c.num_steps} steps; {c.num_updates} updates"
        )

    @property
    def evaluations(self) -> float:
        """Network evaluations of a trajectory's rollout, on average over the draws of branch steps."""
        return self._trunk(possible_draws(self.config)) + sum(row[4] for row in self._per_step)

    @property
    def _per_step(self) -> list[tuple[float, ...]]:
        """(step, share of the draws that have it, K, calls of a tail, and the averages of the tails' evaluations, of
        images and of trained rows) of each branch step."""
        c = self.config
        columns = zip(c.branch_counts, c.tail_lengths, step_shares(c).values(), strict=True)
        if c.trunk == "sde":  # what follows a step is the trajectory itself, and its image is that of all steps
            last = c.branch_counts[-1][0]
            return [(step, p, k, 0, 0, int(step == last), p) for (step, k), _, p in columns]
        return [(step, p, k, length, p * k * length, p * k, p) for (step, k), (_, length), p in columns]

    def _step_table(self) -> list[str]:
        """What each branch step costs, on average over the draws of branch steps."""
        head = ("per trajectory, on average", "drawn", "branches", "tail", "evaluations", "images", "trained")
        rows = self._per_step
        images, trained = (sum(row[column] for row in rows) for column in (5, 6))
        lines: list[tuple[object, ...]] = [(f"branch step {step}", *rest) for step, *rest in rows]
        lines.append(("trunk", "", "", "", self._trunk(possible_draws(self.config)), "", ""))
        lines.append(("all", "", "", "", self.evaluations, images, trained))
        table = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in line] for line in lines]
        return [*_table(head, table), *self._budget_range(), *self._tails_range(), *self._choice_of_levels()]

    def _tails_range(self) -> list[str]:
        """How far adaptive tails can move the evaluations."""
        c = self.config
        if c.tail_steps != "adaptive":
            return []
        full, draws = c.with_full_tails(), possible_draws(c)
        each = zip(c.branch_counts, full.tail_lengths, strict=True)
        shortest, longest = zip(*((k * min(rest, 1), k * rest) for (_, k), (_, rest) in each), strict=True)
        least, most = (
            self._trunk(draws) + sum(p * sum(tails[place] for place in places) for p, places in draws)
            for tails in (shortest, longest)
        )
        return [
            f"these tails are the first; a gate moves them: {least:.4g} evaluations with one call, {most:.4g} in full"
        ]

    def _choice_of_levels(self) -> list[str]:
        """What it costs to choose the levels of tails."""
        rows = num_choice_rows(self.config, min(NUM_TRUNKS, self.num_prompts))
        return [f"before the first iteration, choosing the levels of tails takes {rows} evaluations"] if rows else []

    def _trunk(self, draws: Sequence[tuple[float, tuple[int, ...]]]) -> float:
        """Network evaluations of a trunk, on average over draws."""
        if self.config.trunk == "sde":
            return self.config.num_steps
        return sum(p * (1 + max(self.config.branch_counts[place][0] for place in places)) for p, places in draws)

    def _budget_range(self) -> list[str]:
        """How far an adaptive budget can move the evaluations: to the m shortest tails, or to the m longest."""
        c, m = self.config, self.config.branches_per_trajectory
        if c.branch_budget is None:
            return []
        if m is None:
            return ["these branches are the first ones; later tails have at most as many evaluations in all"]
        tails = [k * length for (_, k), (_, length) in zip(c.branch_counts, c.tail_lengths, strict=True)]
        order = sorted(range(len(tails)), key=tails.__getitem__)
        found = []
        for places in (order[:m], order[-m:]):
            wishes = [float(place in places) for place in range(len(tails))]
            line = Line.of_sizes(mixed_sizes(draw_line(c, m).probabilities, wishes, FLOOR), m)
            evaluations = sum(p * tail for p, tail in zip(line.probabilities, tails, strict=True))
            found.append(evaluations + self._trunk(line.possible()))
        least, most = sorted(found)
        return [f"these are the first iteration's; later ones have about {least:.4g} to {most:.4g} evaluations"]

    def _work_table(self) -> list[str]:
        head = ("process", "trajectories", "padding", "images", "pairs per update")
        rows = [
            (index, _ids(w.trajectories), w.num_carried - len(w.trajectories), w.num_images, _listed(w.pairs))
            for index, w in enumerate(self.work)
        ]
        more = [f"and {len(rows) - SHOWN} more, with one trajectory more or less"] if len(rows) > SHOWN else []
        calls = f"rollout {self.rollout_calls}, training {_listed(self.training_calls)} forward and backward"
        return [*_table(head, rows[:SHOWN]), *more, f"network calls of every process: {calls}"]

    def _cost_table(self) -> list[str]:
        head = ("rows per iteration", "rollout", "trained", "other forwards", "images", "forward passes", "ratio")
        ours = self.costs()[0].total
        rows = [
            (k.name, k.rollout, k.trained, k.extra, k.images, k.total, f"{k.total / ours:.2f}") for k in self.costs()
        ]
        every, (added, images) = self.config.gate_every, self.gate
        gate = [] if every is None else [f"every {every} iterations, a gate adds {added} rows and {images} images"]
        return [*_table(head, rows), *gate, f"a backward pass counts as {BACKWARD} forward passes{self._guidance()}"]

    def _guidance(self) -> str:
        c = self.config
        if not guides(c.guidance_scale):
            return ""
        where = "every row" if c.guided_training else "every row of the rollout"
        unguided = _num_rows(self._waves, guided=(False,))
        but = f" but {unguided} of tails" if unguided else ""
        return f"; guidance evaluates {where}{but} twice, unless the model takes it as an input"


def _num_rows(waves: list[Wavefront], guided: tuple[bool, ...] = (False, True)) -> int:
    """Rows in the network calls of all processes, of calls that may have guidance or not."""
    least = least_calls(waves)
    rows = {
        wave: sum(
            max(len(call), 1)
            for step, number in enumerate(least)
            for call in wave.calls(step, number)
            if call.mode.guided in guided
        )
        for wave in set(waves)
    }
    return sum(rows[wave] for wave in waves)


def _ids(ids: Sequence[int]) -> str:
    """A count, and the first ids."""
    return f"{len(ids)}: {', '.join(map(str, ids[:6]))}{', ...' if len(ids) > 6 else ''}" if ids else "0"


def _listed(numbers: Sequence[int]) -> str:
    return " + ".join(map(str, numbers))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns as wide as their widest cell; the first to the left."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
