"""Settings whose gradients are part of another setting's, so that they need no iterations of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

from ..settings.iteration import GRPOConfig
from .sample import Sample

PER_STEP = {"branch_steps", "num_branches", "tail_steps", "tail_levels"}
"""Settings that only say what happens at each branch step."""
NO_GRADIENT = {"num_updates", "micro_batch", "max_batch", "decode_batch", "cuda_graphs", "max_grad_norm"}
"""Settings that do not change the gradient of an iteration, but for rounding."""
NO_GRADIENT |= {"gate_every", "gate_share", "gate_bound", "gate_action", "budget_memory"}


def sources(settings: Mapping[str, GRPOConfig]) -> dict[str, str]:
    """Which setting's iterations have the gradients of each setting.

    Args:
        settings: by name.

    Returns:
        Name -> the first setting with at least the same branch steps, the same branches and tails at them, and
        otherwise the same settings; its own name where there is no other.
    """
    drawn = [name for name, config in settings.items() if not any(_has(other, config) for other in settings.values())]
    return {
        name: next((source for source in drawn if _has(settings[source], config)), name)
        for name, config in settings.items()
    }


def part_of(sample: Sample, config: GRPOConfig) -> Sample:
    """The part of an iteration that another setting would have drawn; its gradients have another common factor.

    Args:
        sample: an iteration of a setting that has the branch steps of the other one.
        config: the other setting.

    Returns:
        The same gradients at fewer steps; mean reward and seconds are not known.
    """
    steps = [step for step, _ in config.branch_counts]
    gradients = {step: sample.gradients[step] for step in steps}
    return Sample(gradients, {step: sample.spread[step] for step in steps}, math.nan, math.nan)


def _has(other: GRPOConfig, config: GRPOConfig) -> bool:
    """Whether the iterations of a setting have more branch steps than another's, and those of the other."""
    compared = {item.name for item in fields(GRPOConfig)} - PER_STEP - NO_GRADIENT
    if config.trunk != "ode" or config.branches_per_trajectory is not None:
        return False
    if any(getattr(other, name) != getattr(config, name) for name in compared):
        return False
    return _steps(config) < _steps(other)


def _steps(config: GRPOConfig) -> set[tuple[object, ...]]:
    """(step, K, length and levels of the tail) of every branch step."""
    columns, positions = zip(config.branch_counts, config.tail_lengths, strict=True), config.tail_positions
    return {(step, count, length, positions.get(step, config.tail_levels)) for (step, count), (_, length) in columns}
