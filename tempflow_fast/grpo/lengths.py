"""Tails as short as the gate allows: cosines of advantages -> the length of each branch step's tail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..settings.iteration import GRPOConfig
from .gate import COSINE_STEP

HOLD = 8
"""Gates after a tail was too short before a shorter one is tried again."""
LENGTH = "tail_length_step_"
"""Name of the metric, before the step."""


class Move(NamedTuple):
    """A tail that changes its length, or one that is full and yet below the bound."""

    step: int
    before: int
    after: int
    cosine: float


@dataclass
class TailLengths:
    """The lengths of adaptive tails.

    A gate moves the tail of each branch step by the cosine of the advantages after it and after the full one. Below
    `gate_bound` it gets half as many network calls again, and no shorter one is tried for HOLD gates. Where the cosine
    is nearer to 1 than to the bound, and nothing holds it, the tail is halved. In between it stays: this gap, and the
    hold, keep an inexact cosine from moving it back and forth.
    """

    lengths: dict[int, int] = field(default_factory=dict)
    """Branch step -> network calls; empty before the first gate."""
    holds: dict[int, int] = field(default_factory=dict)
    """Branch step -> gates until a shorter tail may be tried."""

    def applied(self, config: GRPOConfig) -> GRPOConfig:
        """The settings of the next iteration.

        Args:
            config: those of the run.

        Returns:
            The same with a table of lengths; `config` itself without adaptive tails, or before a gate of its steps.
        """
        if not self._fits(config):
            return config
        return replace(config, tail_steps=config.as_table(self.lengths, 1))

    def note(self, config: GRPOConfig, metrics: Mapping[str, float]) -> list[Move]:
        """Moves the lengths by a gate's cosines; those of a step that the gate does not know stay.

        Args:
            config: the settings of the run.
            metrics: of the iteration; without a gate, nothing happens.

        Returns:
            The tails that were moved, and those that are below the bound at their full length.
        """
        cosines = {step: metrics.get(f"{COSINE_STEP}{step}") for step, _ in config.branch_counts}
        if config.tail_steps != "adaptive" or not any(cosine is not None for cosine in cosines.values()):
            return []
        if not self._fits(config):
            self.lengths, self.holds = dict(config.tail_lengths), dict.fromkeys(cosines, 0)
        known = {step: float(cosine) for step, cosine in cosines.items() if cosine is not None}
        moves = [self._moved(config, step, cosine) for step, cosine in known.items()]
        return [move for move in moves if move.before != move.after or move.cosine < config.gate_bound]

    def _moved(self, config: GRPOConfig, step: int, cosine: float) -> Move:
        before, held = self.lengths[step], self.holds[step]
        half = -(-before // 2)
        self.holds[step] = max(held - 1, 0)
        if cosine < config.gate_bound:
            self.lengths[step] = min(before + half, config.num_steps - 1 - step)
            self.holds[step] = HOLD
        elif not held and cosine >= (1 + config.gate_bound) / 2:
            self.lengths[step] = half
        return Move(step, before, self.lengths[step], cosine)

    def metrics(self, config: GRPOConfig) -> dict[str, float]:
        """The lengths of an iteration, as tail_length_step_<i>.

        Args:
            config: the settings of the run.
        """
        lengths = self.applied(config).tail_lengths if config.tail_steps == "adaptive" else ()
        return {f"{LENGTH}{step}": float(length) for step, length in lengths}

    def _fits(self, config: GRPOConfig) -> bool:
        return config.tail_steps == "adaptive" and self.lengths.keys() == dict(config.branch_counts).keys()

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint keeps; `from_json` reads it."""
        return {
            "lengths": {str(k): v for k, v in self.lengths.items()},
            "holds": {str(k): v for k, v in self.holds.items()},
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> TailLengths:
        """The lengths as they were.

        Args:
            facts: what `as_json` returned.
        """
        lengths, holds = ({int(k): int(v) for k, v in facts[name].items()} for name in ("lengths", "holds"))
        return cls(lengths, holds)
