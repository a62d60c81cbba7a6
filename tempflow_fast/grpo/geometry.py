"""Who does what in an iteration, and what it costs: solved from the settings, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..batching import equal_pieces
from ..errors import require
from ..policies.base import guides
from ..settings.iteration import GRPOConfig
from .shares import Shares

BACKWARD = 2
"""Cost of a backward pass, in forward passes."""
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
    num_rows: int
    """Trajectories that the rollout carries, one of them padding where other processes have one more."""
    num_images: int
    pairs: tuple[int, ...]
    """(trajectory, branch step) pairs of each update."""


@dataclass(frozen=True)
class Geometry:
    """An iteration: N = P S trajectories of B K branches each, dealt to the processes.

    Print it for a one-page summary. Raises ValueError for fewer than one prompt, process, or trajectory per update.
    """

    config: GRPOConfig
    num_prompts: int
    num_processes: int = 1

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_processes"):
            require(getattr(self, name) >= 1, "Geometry", name, ">= 1", getattr(self, name))
        num_updates, limit = self.config.num_updates, self.num_trajectories
        require(num_updates <= limit, "Geometry", "num_updates", f"at most the {limit} trajectories", num_updates)

    @property
    def num_trajectories(self) -> int:
        """N."""
        return self.num_prompts * self.config.num_seeds

    @property
    def branch_steps(self) -> tuple[int, ...]:
        """The steps where branches leave."""
        steps = self.config.branch_steps
        return tuple(range(self.config.num_steps - 1)) if steps is None else tuple(sorted(steps))

    @property
    def rows_per_step(self) -> list[int]:
        """Rows of one trajectory in the network calls of each step: the trunk, and the branches that have left it."""
        steps = self.branch_steps
        return [
            (step <= steps[-1]) + self.config.num_branches * sum(earlier < step for earlier in steps)
            for step in range(self.config.num_steps)
        ]

    @property
    def work(self) -> list[Work]:
        """The part of each process."""
        num_steps, num_updates, num_processes = len(self.branch_steps), self.config.num_updates, self.num_processes
        return [
            self._work(Shares(self.num_trajectories, num_updates, num_processes, i), num_steps)
            for i in range(num_processes)
        ]

    def _work(self, shares: Shares, num_steps: int) -> Work:
        own = set(shares.own)
        return Work(
            trajectories=tuple(shares.own),
            num_rows=len(shares.carried),
            num_images=len(own) * num_steps * self.config.num_branches,
            pairs=tuple(len(own.intersection(shares.in_update(i))) * num_steps for i in range(shares.num_updates)),
        )

    @property
    def rollout_calls(self) -> int:
        """Network calls of the rollout, in every process."""
        rows = self.work[0].num_rows
        return sum(len(equal_pieces(rows * each, self.config.max_batch)) for each in self.rows_per_step if each)

    @property
    def training_calls(self) -> tuple[int, ...]:
        """Forward and backward calls of each update, in every process: as many as the fullest one needs."""
        updates = zip(*(work.pairs for work in self.work), strict=True)
        return tuple(max(len(equal_pieces(n, self.config.micro_batch)) for n in update) for update in updates)

    def costs(self) -> tuple[Cost, Cost, Cost]:
        """This package, the same iteration as its authors' scripts run it, and Flow-GRPO with groups of S K images."""
        c, n, num_steps = self.config, self.num_trajectories, len(self.branch_steps)
        rollout, pairs, branches = n * sum(self.rows_per_step), n * num_steps, n * num_steps * c.num_branches
        has_reference = c.beta > 0
        acting = sum(len(range(update, n, c.num_updates)) for update in range(1, c.num_updates)) * num_steps
        samples = n * c.num_branches
        flow = samples * num_steps
        padding = (self.work[0].num_rows * self.num_processes - n) * sum(self.rows_per_step)
        return (
            Cost("tempflow-fast", rollout + padding, pairs, acting + has_reference * pairs, branches),
            Cost("TempFlow-GRPO's scripts", rollout, branches, has_reference * branches, branches),
            Cost("Flow-GRPO", samples * c.num_steps, flow, has_reference * flow, samples),
        )

    def __str__(self) -> str:
        return "\n".join([self._summary(), "", *self._work_table(), "", *self._cost_table()])

    def _summary(self) -> str:
        c = self.config
        return (
            f"{self.num_prompts} prompts x {c.num_seeds} seeds = {self.num_trajectories} trajectories, each with "
            f"{c.num_branches} branches at {len(self.branch_steps)} of {c.num_steps} steps; {c.num_updates} updates"
        )

    def _work_table(self) -> list[str]:
        head = ("process", "trajectories", "padding", "images", "pairs per update")
        rows = [
            (index, _ids(w.trajectories), w.num_rows - len(w.trajectories), w.num_images, _listed(w.pairs))
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
        return [*_table(head, rows), f"a backward pass counts as {BACKWARD} forward passes{self._guidance()}"]

    def _guidance(self) -> str:
        if not guides(self.config.guidance_scale):
            return ""
        where = "every row" if self.config.guided_training else "every row of the rollout"
        return f"; guidance evaluates {where} twice, unless the model takes it as an input"


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
