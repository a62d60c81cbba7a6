"""TempFlow-GRPO for flow-matching text-to-image models: trajectory branching and noise-aware policy updates."""

from __future__ import annotations

from . import ops
from .info import info
from .schedule import StepTable, linear_sigmas, step_table

__version__ = "0.1.0"

__all__ = ["StepTable", "info", "linear_sigmas", "ops", "step_table"]
