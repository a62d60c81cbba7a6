"""Values of settings that more than one folder reads."""

from __future__ import annotations

from typing import Literal

Sampler = Literal["flow_sde", "dance_sde", "cps"]
"""The formula that draws a branch."""
NOISELESS = "ode"
"""The sampler of a table without branches."""
Group = Literal["seed", "prompt"]
"""Which rewards are compared: those of one trajectory's branches, or of all branches of one prompt."""
AdvantageScale = Literal["group", "global", "none"]
"""What a reward's distance from the mean of its group is divided by: the standard deviation of the group or of all
rewards at the branch step, or nothing."""
EMBEDDED_MODEL = "embedded"
"""The packaged pipeline of coloured shapes."""
SHAPES_PROMPTS = "shapes"
"""The packaged prompts for coloured shapes."""
DEFAULT_RECIPE = "shapes"
"""The recipe where none is named."""
OVERALL = "overall"
"""Name of the mean of the tasks in reports, next to the names of the tasks; no task can have it."""
