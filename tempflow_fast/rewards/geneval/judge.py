"""GenEval's rules (arXiv 2310.11513, and the constants of its public evaluation): from detections to a verdict.

Two forms, told apart by `exact`. The official one asks whether the wanted objects are among the most confident ones
of their class, and whether nothing that is excluded is there. The strict one, by which Flow-GRPO (arXiv 2505.05470)
trains, asks for exactly the wanted number of each class, and its `credit` pays for what is nearly right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .names import COLORS, RELATIONS

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Confidence above which a detection is an object; counting must be surer."""
MAX_OBJECTS = 16
"""Most confident objects of a class that are looked at."""
POSITION_SLACK = 0.1
"""Part of the summed sizes of two objects by which their centres may differ and still be level."""
MIN_DIRECTION = 0.5
"""Sine or cosine from which an object is to that side of another: within 60 degrees of the axis."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detection:
    """One object that a detector saw."""

    kind: str
    """A name of `OBJECTS`."""
    score: float
    """Confidence in [0, 1]."""
    box: Box
    """Left, top, right, bottom in pixels."""
    mask: Tensor | None = None
    """bool [H, W], where the detector gives one."""


@dataclass(frozen=True)
class Verdict:
    """What the rules say of an image."""

    correct: bool
    credit: float
    """How much of it is right, in [0, 1]; 1 where it is exactly right."""
    reasons: tuple[str, ...]
    """What is wrong, a phrase each."""


Objects = dict[str, list[Detection]]
ColorNamer = Callable[[Sequence[Detection], str], list[str]]
"""The colours of objects of one class, a name of `COLORS` each."""


def judged(
    detections: Iterable[Detection], metadata: Mapping[str, Any], name_colors: ColorNamer, exact: bool
) -> Verdict:
    """The verdict on an image's detections.

    Args:
        detections: in any order.
        metadata: an entry of GenEval's JSONL: `include`, optionally `exclude`, and `tag`.
        name_colors: asked only where a colour is wanted and the number of objects is right.
        exact: the strict form.

    Raises:
        ValueError: for metadata of another form.
    """
    check(metadata)
    objects = _confident(detections, COUNTING_THRESHOLD if metadata.get("tag") == "counting" else THRESHOLD)
    groups: list[list[Detection] | None] = []
    credits, reasons = [], []
    for entry in metadata["include"]:
        kind, count = entry["class"], entry["count"]
        every = objects.get(kind, [])
        seen = every if exact else every[:count]
        right = len(seen) == count
        credits.append(_closeness(len(every), count))
        if not right:
            reasons.append(f"{count} {kind} wanted, {len(seen)} found")
        if "color" in entry:
            named = name_colors(seen, kind) if right else []
            credits.append(_closeness(named.count(entry["color"]), count))
            if right and named.count(entry["color"]) != count:
                right = False
                reasons.append(f"{entry['color']} {kind} wanted, {', '.join(named)} found")
        if "position" in entry:
            relation, anchor = entry["position"]
            if right and not _all_related(seen, relation, groups[anchor]):
                right = False
                reasons.append(f"{kind} wanted {relation} {metadata['include'][anchor]['class']}")
            credits.append(float(right))
        groups.append(seen if right else None)
    if not exact:
        reasons += [
            f"fewer than {entry['count']} {entry['class']} wanted, {len(objects.get(entry['class'], []))} found"
            for entry in metadata.get("exclude", [])
            if len(objects.get(entry["class"], [])) >= entry["count"]
        ]
    correct = not reasons
    return Verdict(correct, sum(credits) / len(credits), tuple(reasons))


def relations(box: Box, anchor: Box) -> set[str]:
    """Which of `RELATIONS` a box has to an anchor box: none, one, or two where it stands diagonally."""
    moved, offsets = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (box[low] + box[high] - anchor[low] - anchor[high]) / 2
        sizes = abs(box[high] - box[low]) + abs(anchor[high] - anchor[low])
        offsets.append(offset)
        moved.append(math.copysign(max(abs(offset) - POSITION_SLACK * sizes, 0), offset))
    if max(map(abs, moved)) < 1e-3:
        return set()
    dx, dy = (distance / math.hypot(*offsets) for distance in moved)
    sides = (dx < -MIN_DIRECTION, dx > MIN_DIRECTION, dy < -MIN_DIRECTION, dy > MIN_DIRECTION)
    return {relation for relation, holds in zip(RELATIONS, sides, strict=True) if holds}


def check(metadata: Mapping[str, Any]) -> None:
    """ValueError unless `metadata` is an entry of GenEval's form."""
    include = metadata.get("include")
    if not isinstance(include, Sequence) or not include:
        raise ValueError(f"geneval: metadata must hold objects to include, got {dict(metadata)}")
    for place, entry in enumerate([*include, *metadata.get("exclude", [])]):
        if not isinstance(entry.get("class"), str) or not isinstance(entry.get("count"), int) or entry["count"] < 1:
            raise ValueError(f"geneval: each object must have a class and a count >= 1, got {entry}")
        if entry.get("color", COLORS[0]) not in COLORS:
            raise ValueError(f"geneval: color must be one of {', '.join(COLORS)}, got {entry['color']!r}")
        if "position" in entry:
            relation, anchor = entry["position"]
            if relation not in RELATIONS or not 0 <= anchor < min(place, len(include)):
                raise ValueError(f"geneval: position must be a relation to an object named before, got {entry}")


def _confident(detections: Iterable[Detection], threshold: float) -> Objects:
    """The detections above the threshold by class, surest first, at most `MAX_OBJECTS` of each."""
    objects: Objects = {}
    for found in sorted(detections, key=lambda detection: -detection.score):
        same = objects.setdefault(found.kind, [])
        if found.score > threshold and len(same) < MAX_OBJECTS:
            same.append(found)
    return objects


def _all_related(seen: Sequence[Detection], relation: str, anchors: Sequence[Detection] | None) -> bool:
    """Does every object stand in `relation` to every anchor? Not if the anchors themselves are wrong."""
    return anchors is not None and all(
        relation in relations(found.box, anchor.box) for found in seen for anchor in anchors
    )


def _closeness(number: int, wanted: int) -> float:
    """1 - |number - wanted| / wanted, not below 0."""
    return max(0.0, 1 - abs(number - wanted) / wanted)
