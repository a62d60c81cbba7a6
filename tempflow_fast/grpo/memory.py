"""What an iteration will hold in memory: solved from its parts, before anything is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..policies.prompt_cache import CACHE_BYTES
from ..rewards.background import WAITING_BYTES
from .budget import most_branches

if TYPE_CHECKING:
    from .geometry import Geometry

GIB = 2**30


@dataclass(frozen=True)
class Calls:
    """What a call holds beyond what is there before and after it."""

    fixed: int
    """Bytes of any call."""
    row: int
    """Bytes that each row adds."""

    def of(self, rows: int) -> int:
        """Bytes of a call.

        Args:
            rows: how many it has.
        """
        return self.fixed + self.row * rows

    def rows_within(self, limit: float) -> int:
        """The most rows that a call may have.

        Args:
            limit: bytes.
        """
        return int((limit - self.fixed) // max(self.row, 1))


@dataclass(frozen=True)
class Load:
    """The part of an iteration that the busiest process has."""

    trajectories: int
    branches: int
    """All those that are drawn, and those that a gate finishes again."""
    pairs: int
    """(trajectory, branch step) pairs."""
    later_pairs: int
    """Those of all updates but the first: their old velocities wait for them."""
    images: int
    prompts: int
    """Different texts of the whole run, as far as they are known."""
    training_rows: int
    """Rows of the largest training call."""
    rollout_rows: int
    """Rows of the largest network call of the rollout."""
    decoded_rows: int
    """Images of the largest decoding call."""
    num_training_calls: int
    """Training calls of an update."""
    captured_rows: int
    """Rows of all network calls of different shapes together."""

    @classmethod
    def of(cls, geometry: Geometry, num_iterations: int | None) -> Load:
        """That of an iteration.

        Args:
            geometry: its work.
            num_iterations: of the run; None: without end.
        """
        c, work = geometry.config, geometry.work
        pairs = max(sum(w.pairs) for w in work)
        rollout_rows = min(c.max_batch or 2**62, max(w.most_rows for w in work))
        carried = max(w.num_carried for w in work)
        branches = -(-geometry.branches.num_rows * carried // geometry.num_trajectories)
        images = max(w.num_images for w in work)
        if c.branch_budget is not None and c.branches_per_trajectory is None:  # later iterations have other counts
            branches = images = max(branches, carried * sum(most_branches(c)))
        return cls(
            trajectories=carried,
            branches=branches + (0 if c.gate_every is None else int(c.gate_share * branches)),
            pairs=pairs,
            later_pairs=max(sum(w.pairs[1:]) for w in work),
            images=images,
            prompts=2**62 if num_iterations is None else geometry.num_prompts * num_iterations,
            training_rows=min(c.micro_batch or 2**62, max(max(w.pairs) for w in work)),
            rollout_rows=rollout_rows,
            decoded_rows=min(c.decode_batch or 2**62, geometry.most_finished),
            num_training_calls=max(geometry.training_calls),
            captured_rows=geometry.captured_rows,
        )

    def with_rows(self, training_rows: int, rollout_rows: int, decoded_rows: int) -> Load:
        """The same in smaller calls.

        Args:
            training_rows: the most rows of a training call.
            rollout_rows: of a network call of the rollout.
            decoded_rows: of a decoding call.
        """
        rollout_rows = min(rollout_rows, self.rollout_rows)
        return replace(
            self,
            training_rows=min(training_rows, self.training_rows),
            rollout_rows=rollout_rows,
            decoded_rows=min(decoded_rows, self.decoded_rows),
            captured_rows=self.captured_rows * rollout_rows // self.rollout_rows,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes in one process that holds the whole network; sharding divides those of the network and of training it.

    Rewards, the context and workspaces of CUDA, buckets of data-parallel training, and what an allocator loses between
    its blocks come on top.
    """

    network: int
    """Parameters and buffers, without adapters."""
    adapter: int
    merged: int
    """Copies of the weights with the adapter added, for the rollout."""
    reference: int
    """The frozen copy of a network that is trained as a whole with a KL term."""
    encoders: int
    """Text encoders."""
    offloaded: bool
    """Whether those are on the device only while prompts are encoded."""
    autoencoder: int
    optimizer: int
    """What the optimizer remembers of the trained weights."""
    average: int
    """The moving average of the trained weights."""
    gradients: int
    latent: int
    """One latent in float32."""
    text: int
    """The encoding of one prompt, and that of the negative prompt if guided."""
    image: int
    remembered: int
    """Latents that the rollout keeps of each branch."""
    velocities: int
    """Velocities of a network call: two if guided."""
    training: Calls
    """Forward and backward, beyond gradients that are there before."""
    training_alone: Calls
    """The same with its own gradients, where there are none before."""
    rollout: Calls
    decoding: Calls
    graphs: bool
    """Whether network calls are captured: their pool is never used for anything else."""

    @property
    def resident(self) -> dict[str, int]:
        """What is there all the time."""
        parts = {
            "network": self.network,
            "adapter": self.adapter,
            "merged copies": self.merged,
            "reference": self.reference,
            "text encoders": 0 if self.offloaded else self.encoders,
            "autoencoder": self.autoencoder,
            "optimizer": self.optimizer,
            "moving average": self.average,
        }
        return {name: size for name, size in parts.items() if size}

    def drawn(self, load: Load) -> int:
        """The rollout as it stays until the update, and the encodings of prompts.

        Args:
            load: of the process.
        """
        latents = 2 * load.trajectories + self.remembered * load.branches + load.pairs
        return self.latent * latents + self.text * load.trajectories + min(CACHE_BYTES, self.text * load.prompts)

    def pool(self, load: Load) -> int:
        """The pool of captured graphs: the memory of the largest call, and the inputs and outputs of all.

        Args:
            load: of the process.
        """
        if not self.graphs:
            return 0
        return self._pool(load).of(load.rollout_rows)

    def _pool(self, load: Load) -> Calls:
        outputs = self.velocities * self.latent * load.captured_rows // load.rollout_rows
        return Calls(self.rollout.fixed, self.rollout.row + self.latent + self.text + outputs)

    def stages(self, load: Load) -> dict[str, int]:
        """Stage of an iteration -> what it holds at its peak, beyond `resident`.

        Args:
            load: of the process.
        """
        drawn, pool = self.drawn(load), self.pool(load)
        waiting = min(self.image * load.images, max(WAITING_BYTES, self.image * load.decoded_rows))
        old = self.latent * load.later_pairs
        alone = self.training_alone.of(load.training_rows)
        if load.num_training_calls > 1:
            alone = max(alone, self.gradients + self.training.of(load.training_rows))
        return {
            "encode": self.encoders if self.offloaded else 0,
            "rollout": drawn + (pool or self.rollout.of(load.rollout_rows)),
            "decode": drawn + pool + waiting + self.decoding.of(load.decoded_rows),
            "train": drawn + pool + old + alone,
        }

    def total(self, load: Load) -> int:
        """The peak.

        Args:
            load: of the process.
        """
        return sum(self.resident.values()) + max(self.stages(load).values())

    def fitting(self, limit: float, load: Load) -> tuple[int, int, int]:
        """The most rows in calls of each kind that stay below a limit.

        Args:
            limit: bytes.
            load: of the process; the rows of its calls do not count.

        Returns:
            (micro_batch, max_batch, decode_batch).

        Raises:
            ValueError: if not even calls of one row do.
        """
        left = limit - sum(self.resident.values()) - self.drawn(load)
        waiting = min(self.image * load.images, WAITING_BYTES)
        pool = left / 2 if self.graphs else 0  # which is then never free for the other calls
        training = left - pool - self.latent * load.later_pairs - self.gradients
        rows = (
            self.training.rows_within(training),
            self._pool(load).rows_within(pool) if self.graphs else self.rollout.rows_within(left),
            self.decoding.rows_within(left - pool - waiting),
        )
        need = self.total(load.with_rows(1, 1, 1))
        if min(rows) < 1 or need > limit:  # the text encoders, too, have to fit while they are at work
            raise ValueError(f"Memory: limit must be at least {need / GIB:.2f} GiB, got {limit / GIB:.2f} GiB")
        return rows

    def page(self, load: Load) -> str:
        """A table of all parts.

        Args:
            load: of the process.
        """
        head = (
            f"GiB in a process, at most {load.training_rows} rows per training call, {load.rollout_rows} per rollout "
            f"call and {load.decoded_rows} per decoding call; rewards and the device's own come on top"
        )
        return "\n".join([head, *(f"{name:<28}{size / GIB:9.3f}" for name, size in self._lines(load))])

    def _lines(self, load: Load) -> Iterator[tuple[str, int]]:
        stages = self.stages(load)
        yield from self.resident.items()
        yield "rollout's latents and texts", self.drawn(load)
        if self.graphs:
            yield "pool of captured graphs", self.pool(load)
        yield from ((f"peak of {name}", size) for name, size in stages.items())
        yield "in total", self.total(load)
