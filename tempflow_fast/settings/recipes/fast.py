"""The fast form of a recipe: fewer branch steps, short tails, and a gate that watches them."""

from __future__ import annotations

import math

from ..run import TrainConfig

EARLY, LATE = 0.1, 0.5
"""Branch steps leave between these shares of the schedule."""
TAIL_STEPS = 3
"""Network calls after a branch step."""
SOURCE = "Source: ours, measured on the packaged pipeline alone, see docs/budget.md. Check it by tempflow-fast signal."


def fast(config: TrainConfig) -> TrainConfig:
    """Returns a recipe with the settings that kept most of the signal at a fifth of the network evaluations.

    Branches leave in the first half of the schedule, but not at its first step, and their tails take three network
    calls. Every 20 iterations a gate compares an eighth of the trajectories with full tails; where the cosine of the
    advantages falls below 0.6, the run returns to the full tails.

    Args:
        config: a recipe whose branch steps are all but the last.
    """
    num_steps = config.grpo.num_steps
    steps = range(max(1, round(EARLY * num_steps)), math.ceil(LATE * num_steps))
    return config.with_settings(
        branch_steps=tuple(steps),
        tail_steps=TAIL_STEPS,
        gate_every=20,
        gate_share=0.125,
        gate_bound=0.6,
        gate_action="full",
    )
