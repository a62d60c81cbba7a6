"""The fast form of a recipe: fewer branch steps, and tails as short as a gate allows."""

from __future__ import annotations

import math

from ..run import TrainConfig

EARLY, LATE = 0.1, 0.5
"""Branch steps leave between these shares of the schedule."""
BOUND = 0.6
"""Lowest cosine of the advantages after cheap and full tails."""
SOURCE = "Source: ours, measured on the packaged pipeline alone, see docs/signal.md. Check it by tempflow-fast signal."


def fast(config: TrainConfig) -> TrainConfig:
    """Returns a recipe with a third of the network evaluations at first, and as few later as its gates allow.

    Branches leave in the first half of the schedule, but not at its first step. Their tails start with half of the
    remaining network calls; every 10 iterations a gate compares a quarter of the trajectories with full tails, and the
    tail of each branch step gets shorter or longer, so that the cosine of its advantages stays above 0.6.

    Args:
        config: a recipe whose branch steps are all but the last.
    """
    num_steps = config.grpo.num_steps
    steps = range(max(1, round(EARLY * num_steps)), math.ceil(LATE * num_steps))
    return config.with_settings(
        branch_steps=tuple(steps),
        tail_steps="adaptive",
        gate_every=10,
        gate_bound=BOUND,
    )
