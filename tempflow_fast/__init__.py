"""TempFlow-GRPO for flow-matching text-to-image models: trajectory branching and noise-aware policy updates."""

from __future__ import annotations

from . import ops
from .advantages import group_advantages
from .config import GRPOConfig
from .grpo import grpo_step
from .info import info
from .rollout import Rollout, rollout  # the function takes the name that the import of its module has bound
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
