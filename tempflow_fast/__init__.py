"""TempFlow-GRPO for flow-matching text-to-image models: trajectory branching and noise-aware policy updates."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops
    from .advantages import group_advantages
    from .config import GRPOConfig
    from .grpo import grpo_step
    from .info import info
    from .rollout import Rollout, rollout
    from .schedule import StepTable, linear_sigmas, step_table

__version__ = "0.1.0"

__all__ = [
    "GRPOConfig",
    "Rollout",
    "StepTable",
    "group_advantages",
    "grpo_step",
    "info",
    "linear_sigmas",
    "ops",
    "rollout",
    "step_table",
]

_HOMES = {
    "GRPOConfig": "config",
    "Rollout": "rollout",
    "StepTable": "schedule",
    "group_advantages": "advantages",
    "grpo_step": "grpo",
    "info": "info",
    "linear_sigmas": "schedule",
    "rollout": "rollout",
    "step_table": "schedule",
}
"""Public name -> its module, imported on first use: the command line explains itself without waiting for torch."""


class _Package(ModuleType):
    """Gives `tempflow_fast.rollout` and `.info` as the functions, although modules have these names, too."""

    def __getattr__(self, name: str) -> Any:
        if name in __all__:
            module = import_module(f"{__name__}.{_HOMES.get(name, name)}")
            return getattr(module, name) if name in _HOMES else module
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds a submodule here once it is loaded.
        is_namesake = isinstance(value, ModuleType) and _HOMES.get(name) == name
        super().__setattr__(name, getattr(value, name) if is_namesake else value)


sys.modules[__name__].__class__ = _Package
