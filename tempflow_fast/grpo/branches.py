"""Where branches leave their trunks: a list of pairs (trajectory, step), each with its number of branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import fail, require


@dataclass(frozen=True, eq=False)
class Branches:
    """G pairs (trajectory, branch step) of N trajectories with R branches in all, as int64 tensors on the host.

    The pairs are in ascending order, by trajectory and then by step; the branches of a pair follow one another. This is
    the order of everything flat: states [G, ...], branches, rewards and advantages [R, ...]. Where every trajectory
    branches at the same B steps, with the same K at each, `dense` views a flat tensor as [N, B, K, ...].

    Raises:
        ValueError: naming what is not a list of pairs.
    """

    num_trajectories: int
    """N."""
    trajectories: Tensor
    """[G], 0 .. N - 1."""
    steps: Tensor
    """[G], the step at which the branches leave."""
    counts: Tensor
    """[G], the number of branches, at least 1."""
    weights: Tensor
    """float64 [G], the weight of each pair in the loss, which is a mean over pairs."""

    def __post_init__(self) -> None:
        shapes = {len(part) for part in (self.trajectories, self.steps, self.counts, self.weights)}
        require(len(shapes) == 1, "Branches", "steps, counts and weights", "as many as trajectories", sorted(shapes))
        if not self.num_pairs:
            return
        low, high = int(self.trajectories.min()), int(self.trajectories.max())
        if low < 0 or high >= self.num_trajectories:
            fail("Branches", "trajectories", f"in 0..{self.num_trajectories - 1}", f"{low}..{high}")
        require(int(self.steps.min()) >= 0, "Branches", "steps", "not negative", int(self.steps.min()))
        require(int(self.counts.min()) >= 1, "Branches", "counts", ">= 1", int(self.counts.min()))
        rank = self.trajectories * (int(self.steps.max()) + 1) + self.steps
        ascending = bool((rank.diff() > 0).all())
        require(ascending, "Branches", "pairs", "distinct and ascending by trajectory, then step", "others")

    @classmethod
    def everywhere(cls, num_trajectories: int, counts: Mapping[int, int]) -> Branches:
        """Every trajectory branches at the same steps.

        Args:
            num_trajectories: N.
            counts: step -> K; steps with 0 have no branches.
        """
        steps = sorted(step for step, count in counts.items() if count)
        return cls(
            num_trajectories,
            torch.arange(num_trajectories).repeat_interleave(len(steps)),
            torch.tensor(steps, dtype=torch.int64).repeat(num_trajectories),
            torch.tensor([counts[step] for step in steps], dtype=torch.int64).repeat(num_trajectories),
            torch.ones(num_trajectories * len(steps), dtype=torch.float64),
        )

    def last_of_each(self) -> Branches:
        """The last branch step of each trajectory alone, with K = 1."""
        ones = torch.ones(self.num_trajectories)
        return Branches(
            self.num_trajectories, torch.arange(self.num_trajectories), self.last_steps, ones.long(), ones.double()
        )

    @property
    def num_pairs(self) -> int:
        """G."""
        return len(self.trajectories)

    @cached_property
    def num_rows(self) -> int:
        """R."""
        return int(self.counts.sum())

    @cached_property
    def first_rows(self) -> Tensor:
        """[G], the first of each pair's rows."""
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def pair_of_row(self) -> Tensor:
        """[R], the pair to which each branch belongs."""
        return torch.arange(self.num_pairs).repeat_interleave(self.counts)

    @cached_property
    def kinds(self) -> list[Tensor]:
        """Bool [G] per kind of pair: those with the same K and the same weight, which can share a training call."""
        both = torch.stack([self.counts.double(), self.weights], dim=1)
        kinds, which = both.unique(dim=0, return_inverse=True)
        return [which == kind for kind in range(len(kinds))]

    @cached_property
    def last_steps(self) -> Tensor:
        """[N], the last step at which each trajectory branches, where its trunk ends; -1 if it never does."""
        last = torch.full((self.num_trajectories,), -1)
        return last.scatter_reduce(0, self.trajectories, self.steps, "amax")

    @cached_property
    def common_steps(self) -> tuple[int, ...] | None:
        """The steps at which every trajectory branches, if they are the same for all."""
        num = self.num_trajectories
        if not num or self.num_pairs % num:
            return None
        per_trajectory = self.trajectories.view(num, -1), self.steps.view(num, -1)
        owners = torch.arange(num)[:, None]
        if bool((per_trajectory[0] != owners).any()) or bool((per_trajectory[1] != per_trajectory[1][:1]).any()):
            return None
        return tuple(per_trajectory[1][0].tolist())

    @cached_property
    def shape(self) -> tuple[int, int, int] | None:
        """(N, B, K), if every trajectory branches at the same steps with the same K everywhere."""
        if self.common_steps is None or not self.num_pairs or bool((self.counts != self.counts[0]).any()):
            return None
        return self.num_trajectories, len(self.common_steps), int(self.counts[0])

    def dense(self, rows: Tensor) -> Tensor:
        """Views a tensor of all branches by trajectory and branch step.

        Args:
            rows: [R, ...].

        Returns:
            [N, B, K, ...].

        Raises:
            ValueError: if the list is not the same for all trajectories.
        """
        if self.shape is None:
            fail("dense", "branches", "the same steps and the same K for all trajectories", "a list that differs")
        return rows.unflatten(0, self.shape)

    def dense_pairs(self, pairs: Tensor) -> Tensor:
        """Views a tensor of all pairs by trajectory and branch step.

        Args:
            pairs: [G, ...].

        Returns:
            [N, B, ...].

        Raises:
            ValueError: if the list is not the same for all trajectories.
        """
        if self.common_steps is None:
            fail("dense_pairs", "branches", "the same steps for all trajectories", "a list that differs")
        return pairs.unflatten(0, (self.num_trajectories, len(self.common_steps)))

    def pairs_at(self, step: int) -> Tensor:
        """[N], the pair of each trajectory at a step; -1 where it does not branch.

        Args:
            step: the step.
        """
        pairs = torch.full((self.num_trajectories,), -1)
        here = (self.steps == step).nonzero().flatten()
        pairs[self.trajectories[here]] = here
        return pairs

    def pairs_of(self, trajectories: Sequence[int]) -> Tensor:
        """The pairs of some trajectories, one trajectory after the other.

        Args:
            trajectories: n numbers, of which some may repeat.

        Returns:
            int64, positions in 0 .. G - 1.
        """
        ends = self.trajectories.bincount(minlength=self.num_trajectories).cumsum(0).tolist()
        return _joined([torch.arange(ends[n - 1] if n else 0, ends[n]) for n in trajectories])

    def rows_of(self, trajectories: Sequence[int]) -> Tensor:
        """The branches of some trajectories, one trajectory after the other.

        Args:
            trajectories: n numbers, of which some may repeat.

        Returns:
            int64, positions in 0 .. R - 1.
        """
        pairs = self.pairs_of(trajectories)
        counts = self.counts[pairs]
        within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        return self.first_rows[pairs].repeat_interleave(counts) + within

    def of(self, trajectories: Sequence[int]) -> Branches:
        """The list of some trajectories, which are numbered anew.

        Args:
            trajectories: n numbers, of which some may repeat.

        Returns:
            A list of n trajectories.
        """
        pairs, lengths = self.pairs_of(trajectories), self.trajectories.bincount(minlength=self.num_trajectories)
        owners = torch.arange(len(trajectories)).repeat_interleave(lengths[list(trajectories)])
        return Branches(len(trajectories), owners, self.steps[pairs], self.counts[pairs], self.weights[pairs])


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def same_size(values: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Stacks groups of equal size.

    Args:
        values: [R, ...].
        labels: int64 [R] on the host, the group of each row, 0 .. n - 1.

    Returns:
        Per size k: the rows int64 [n, k], and their values [n, k, ...]; groups are in the order of their labels.
    """
    order = labels.argsort(stable=True)
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    stacks = []
    for size in sizes.unique().tolist():
        if size:
            rows = order[starts[sizes == size][:, None] + torch.arange(size)]
            whole = rows.numel() == len(values) and bool((rows.flatten() == torch.arange(len(values))).all())
            stacks.append(
                (rows, values.unflatten(0, rows.shape) if whole else values[rows.to(values.device, non_blocking=True)])
            )
    return stacks
