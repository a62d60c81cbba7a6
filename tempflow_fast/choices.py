"""Names that settings may take and that more than one room reads."""

from __future__ import annotations

from typing import Literal

Sampler = Literal["flow_sde", "dance_sde", "cps"]
"""How a branch is drawn."""
NOISELESS = "ode"
"""The sampler of a table without branches."""
Group = Literal["seed", "prompt"]
"""Whose rewards are compared: the branches of one trajectory, or of all trajectories of one prompt."""
EMBEDDED_MODEL = "embedded"
"""The packaged pipeline of coloured shapes."""
SHAPES_PROMPTS = "shapes"
"""The packaged prompts about them."""
DEFAULT_RECIPE = "shapes"
