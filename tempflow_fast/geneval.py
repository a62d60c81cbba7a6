"""What GenEval (arXiv 2310.11513) defines for every world: tasks, numbers, relations, and the rule for positions.

The reward `geneval` judges photographs by it, and `shapes` the images of the packaged model. The constants are those of
GenEval's public evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBERS = {2: "two", 3: "three", 4: "four"}
"""The counts that prompts ask for, in words."""
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
POSITION_SLACK = 0.1
"""Two objects are level if their centres differ by at most this fraction of their summed sizes."""
MIN_DIRECTION = 0.5
"""Sine or cosine from which an object is on that side of another: within 60 degrees of the axis."""


def relations(offset: Sequence[float], sizes: Sequence[float]) -> set[str]:
    """Which of `RELATIONS` an object has to another one, the anchor.

    Args:
        offset: centre of the object minus centre of the anchor, (x, y), y downwards.
        sizes: the summed widths and the summed heights of both, in the same unit.

    Returns:
        None, one or, diagonally, two of them.
    """
    moved = [
        math.copysign(max(abs(distance) - POSITION_SLACK * size, 0), distance)
        for distance, size in zip(offset, sizes, strict=True)
    ]
    if max(map(abs, moved)) < 1e-3:
        return set()
    dx, dy = (distance / math.hypot(*offset) for distance in moved)
    sides = (dx < -MIN_DIRECTION, dx > MIN_DIRECTION, dy < -MIN_DIRECTION, dy > MIN_DIRECTION)
    return {relation for relation, holds in zip(RELATIONS, sides, strict=True) if holds}


def plural(kind: str) -> str:
    """GenEval's own plural of an object's name, which knows two endings and so writes "two benchs".

    Args:
        kind: the singular.
    """
    return kind + ("es" if kind.endswith("s") else "s")
