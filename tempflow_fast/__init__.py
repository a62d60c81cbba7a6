"""TempFlow-GRPO for flow-matching text-to-image models: trajectory branching and noise-aware policy updates.

    grpo_step          one whole iteration: encode, roll out, decode, score, normalise, update
    GRPOConfig         its settings
    rollout, group_advantages, update, step_table, ops    its parts
    Rollout, StepTable    what `rollout` and `step_table` return
    linear_sigmas      evenly spaced noise levels, a schedule for `step_table`
    load_policy, get_reward    a model and a reward by name
    measure_signal     how much each setting of an iteration teaches for its cost, at a fixed policy
    Geometry           what an iteration does and costs, before anything runs
    launched, Processes    the processes that share a run
    info               versions, and which body (implementation) serves each op

Elsewhere: `RewardError` is in `tempflow_fast.rewards`, `ProcessLostError` in `tempflow_fast.processes`, and `Shares` in
`tempflow_fast.grpo.shares`.

Every public name is imported on first use, so that the command line answers without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import ops, policies, rewards
    from .grpo.advantages import group_advantages
    from .grpo.geometry import Geometry
    from .grpo.rollout import Rollout, rollout
    from .grpo.step import grpo_step
    from .grpo.update import update
    from .ops.info import info
    from .ops.schedule import StepTable, linear_sigmas, step_table
    from .processes import Processes, launched
    from .rewards import get_reward
    from .run.load import load_policy
    from .settings.iteration import GRPOConfig
    from .signal.measure import measure_signal

_HOMES = {
    "GRPOConfig": ".settings.iteration",
    "Geometry": ".grpo.geometry",
    "Processes": ".processes",
    "Rollout": ".grpo.rollout",
    "StepTable": ".ops.schedule",
    "get_reward": ".rewards",
    "group_advantages": ".grpo.advantages",
    "grpo_step": ".grpo.step",
    "info": ".ops.info",
    "launched": ".processes",
    "linear_sigmas": ".ops.schedule",
    "load_policy": ".run.load",
    "measure_signal": ".signal.measure",
    "rollout": ".grpo.rollout",
    "step_table": ".ops.schedule",
    "update": ".grpo.update",
}
"""Public name -> the module that defines it."""
_MODULES = ("ops", "policies", "rewards")

__all__ = [
    "GRPOConfig",
    "Geometry",
    "Processes",
    "Rollout",
    "StepTable",
    "__version__",
    "get_reward",
    "group_advantages",
    "grpo_step",
    "info",
    "launched",
    "linear_sigmas",
    "load_policy",
    "measure_signal",
    "ops",
    "policies",
    "rewards",
    "rollout",
    "step_table",
    "update",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name], __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
