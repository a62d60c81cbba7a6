"""Which process rolls out and trains which trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Shares:
    """N trajectories dealt to the processes and to the optimizer updates of one iteration.

    Trajectory n belongs to update n % num_updates. Trajectories are dealt in turn, update after update, without
    restarting at process 0; so the shares of each update, and of the whole iteration, differ by at most one. No number
    has to be a multiple of another.
    """

    num_trajectories: int
    """N, of all processes."""
    num_updates: int
    num_processes: int = 1
    index: int = 0
    """Which process this is."""

    @cached_property
    def by_process(self) -> list[list[int]]:
        """The global ids of each process's trajectories, in ascending order."""
        by_update = [n for update in range(self.num_updates) for n in self.in_update(update)]
        return [sorted(by_update[process :: self.num_processes]) for process in range(self.num_processes)]

    @property
    def own(self) -> list[int]:
        """The global ids of this process's trajectories, in ascending order."""
        return self.by_process[self.index]

    @property
    def carried(self) -> list[int]:
        """The trajectories that this process rolls out: its own, then trajectory 0 again where others have one more.

        Networks that are split over processes work only if all of them make the same calls, and a process with less to
        do would wait anyway.
        """
        return self.carried_by(self.index)

    def carried_by(self, process: int) -> list[int]:
        """The trajectories that a process rolls out, see `carried`.

        Args:
            process: its index.
        """
        own = self.by_process[process]
        return own + [0] * (max(map(len, self.by_process)) - len(own))

    def in_update(self, update: int) -> range:
        """The global ids of an update's trajectories, in all processes."""
        return range(update, self.num_trajectories, self.num_updates)
