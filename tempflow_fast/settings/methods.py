"""Methods by name: each is a set of settings of one machinery (schedule of branch steps, weight, credit)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

from ..errors import unknown
from .iteration import GRPOConfig

Method = Literal[
    "tempflow",
    "tempflow_unweighted",
    "tempflow_prompt_groups",
    "flow_grpo",
    "flow_grpo_weighted",
    "flow_grpo_fast",
    "mixgrpo",
    "mixgrpo_random",
    "mixgrpo_fixed",
    "flash",
]
BRANCHES = 6
"""K of TempFlow-GRPO, where the settings have no branches."""
WINDOW = 2
"""Steps of a window, as in Flow-GRPO's config/base.py; MixGRPO has 4 of 25."""

EVERYWHERE: dict[str, Any] = {
    "branch_steps": None,
    "branches_per_trajectory": None,
    "branch_draw": "weighted",
    "branch_probabilities": None,
    "branch_budget": None,
}
"""Every step but the last, for all trajectories."""


def with_method(config: GRPOConfig, name: str) -> GRPOConfig:
    """Replaces the settings that make a method; the images per prompt and all other settings stay.

    Applied twice it changes nothing more. Every method finishes its images by the full tail.

    Args:
        config: the settings.
        name: one of `Method`, see docs/methods.md.

    Raises:
        ValueError: for an unknown name, or settings that cannot have the method.
    """
    return replace(config.with_full_tails(), **method_settings(config, name))


def method_settings(config: GRPOConfig, name: str) -> dict[str, Any]:
    """What a method replaces, in addition to cheap tails: setting -> value.

    Args:
        config: the settings before.
        name: one of `Method`.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in SETTINGS:
        unknown("with_method", "name", name, SETTINGS)
    return {**EVERYWHERE, **SETTINGS[name](config)}


def _tempflow(**others: Any) -> Callable[[GRPOConfig], dict[str, Any]]:
    """Noiseless trunks; branches leave at every step, and a reward belongs to the step of its branch."""

    def settings(config: GRPOConfig) -> dict[str, Any]:
        seeds, branches = config.num_seeds, _most_branches(config)
        if config.trunk == "sde":  # about as many images per prompt and step
            branches = min(BRANCHES, seeds)
            seeds = seeds // branches
        structure = {"trunk": "ode", "noise_weighting": True, "group": "seed", "adv_scale": "group"}
        return {**structure, "num_seeds": seeds, "num_branches": branches, **others}

    return settings


def _flow_grpo(window: Callable[[GRPOConfig], dict[str, Any]] | None = None, **others: Any) -> Any:
    """Trajectories that take the noisy steps themselves; one reward belongs to all of its steps."""

    def settings(config: GRPOConfig) -> dict[str, Any]:
        images = config.num_seeds * _most_branches(config)
        structure = {"trunk": "sde", "noise_weighting": False, "group": "prompt", "adv_scale": "group"}
        counts = {"num_seeds": images, "num_branches": 1, "cuda_graphs": False}
        return {**structure, **counts, **(window(config) if window else {}), **others}

    return settings


def _most_branches(config: GRPOConfig) -> int:
    return max(count for _, count in config.branch_counts)


def _window(draw: str, share: float = 1.0) -> Callable[[GRPOConfig], dict[str, Any]]:
    """A window of noisy steps within the first share of the schedule, at a place that `draw` says."""

    def settings(config: GRPOConfig) -> dict[str, Any]:
        steps = tuple(range(min(config.num_steps - 1, max(1, int(share * config.num_steps)))))
        return {"branch_steps": steps, "branches_per_trajectory": min(WINDOW, len(steps)), "branch_draw": draw}

    return settings


def _first_steps(config: GRPOConfig) -> dict[str, Any]:
    return {"branch_steps": tuple(range(min(WINDOW, config.num_steps - 1)))}


SETTINGS: dict[str, Callable[[GRPOConfig], dict[str, Any]]] = {
    "tempflow": _tempflow(),
    "tempflow_unweighted": _tempflow(noise_weighting=False),
    "tempflow_prompt_groups": _tempflow(group="prompt"),
    "flow_grpo": _flow_grpo(adv_scale="global"),
    "flow_grpo_weighted": _flow_grpo(noise_weighting=True),
    "flow_grpo_fast": _flow_grpo(_window("random", share=0.5), adv_scale="global"),
    "mixgrpo": _flow_grpo(_window("progressive")),
    "mixgrpo_random": _flow_grpo(_window("random")),
    "mixgrpo_fixed": _flow_grpo(_first_steps),
    "flash": _flow_grpo(branches_per_trajectory=1, branch_draw="staggered"),
}
"""Method -> the settings it replaces beyond `EVERYWHERE`, given the others."""
assert set(SETTINGS) == set(get_args(Method))
