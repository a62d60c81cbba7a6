"""What GenEval (arXiv 2310.11513) defines for every world: tasks, numbers, relations, entries, the rule for positions.

The reward `geneval` judges photographs by it, and `shapes` the images of the packaged model. The constants are those of
GenEval's public evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .errors import fail, require, unknown

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


def check_entry(
    function: str,
    metadata: Mapping[str, Any],
    classes: Collection[str],
    colors: Collection[str],
    most: int,
    synonyms: Mapping[str, str] | None = None,
) -> None:
    """Refuses metadata that are not an entry of GenEval's form, or ask for what no image of a world can show.

    Such an entry would score 0 for ever.

    Args:
        function: the reward, for messages.
        metadata: of one image.
        classes: the objects of the world.
        colors: its colours.
        most: how many objects of a class are counted.
        synonyms: other words for classes, for hints alone.

    Raises:
        ValueError: naming the field, and the nearest class or colour.
    """
    include, exclude = metadata.get("include"), metadata.get("exclude") or []
    is_entry = isinstance(include, list) and include and isinstance(exclude, list)
    require(bool(is_entry), function, "metadata", "an entry with objects to include, a list", dict(metadata))
    listed: list[Any] = [*(include or ()), *exclude]
    for place, entry in enumerate(listed):
        expected = f"an entry with a class and a count, an integer from 1 to {most}"
        counted = isinstance(entry, Mapping) and type(entry.get("count")) is int and 1 <= entry["count"] <= most
        require(counted and isinstance(entry.get("class"), str), function, "each object", expected, entry)
        if entry["class"] not in classes:
            word = entry["class"].strip().lower()
            unknown(function, "class", entry["class"], classes, like=(synonyms or {}).get(word, word))
        if "color" in entry and entry["color"] not in colors:
            unknown(function, "color", entry["color"], colors, like=str(entry["color"]))
        if "position" in entry:
            _check_position(function, entry["position"], min(place, len(include or ())))


def _check_position(function: str, position: Any, num_before: int) -> None:
    expected = f"a relation to an object named before, [one of {', '.join(RELATIONS)}; its place]"
    if not isinstance(position, Sequence) or isinstance(position, str) or len(position) != 2:
        fail(function, "position", expected, repr(position))
    relation, anchor = position
    fits = relation in RELATIONS and type(anchor) is int and 0 <= anchor < num_before
    require(fits, function, "position", expected, repr(position))
