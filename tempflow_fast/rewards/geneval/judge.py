"""GenEval's rules (arXiv 2310.11513, and the constants of its public evaluation): from detections to a verdict.

There are two forms, selected by `exact`. The official one asks whether the wanted objects are among the most confident
ones of their class, and whether excluded ones are absent. The strict one, with which Flow-GRPO (arXiv 2505.05470)
trains, asks for exactly the wanted number of each class, and its `credit` rewards what is nearly right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ... import geneval
from .names import COLORS, OBJECTS, SYNONYMS

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
"""Confidence above which a detection counts as an object; higher for counting."""
MAX_OBJECTS = 16
"""How many of the most confident objects of a class are considered."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detection:
    """One object that a detector found."""

    kind: str
    """A name of `OBJECTS`."""
    score: float
    """Confidence in [0, 1]."""
    box: Box
    """Left, top, right, bottom in pixels."""
    mask: Tensor | None = None
    """bool [H, W]; None if the detector gives no masks."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of an image."""

    correct: bool
    credit: float
    """How much of it is right, in [0, 1]; 1 if it is exactly right."""
    reasons: tuple[str, ...]
    """What is wrong, one phrase per fault."""


Objects = dict[str, list[Detection]]
ColorNamer = Callable[[Sequence[Detection], str], list[str]]
"""Takes objects of one class and the class; returns a name of `COLORS` for each."""


def judged(
    detections: Iterable[Detection], metadata: Mapping[str, Any], name_colors: ColorNamer, exact: bool
) -> Verdict:
    """The verdict on an image's detections.

    Args:
        detections: in any order.
        metadata: an entry of GenEval's JSONL: `include`, optionally `exclude`, and `tag`.
        name_colors: called only if a colour is wanted and the number of objects is right.
        exact: use the strict form.

    Raises:
        ValueError: if the metadata have another form.
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
            for entry in metadata.get("exclude") or []
            if len(objects.get(entry["class"], [])) >= entry["count"]
        ]
    correct = not reasons
    return Verdict(correct, sum(credits) / len(credits), tuple(reasons))


def relations(box: Box, anchor: Box) -> set[str]:
    """Which of `RELATIONS` a box has to an anchor box: none, one or, diagonally, two of them.

    Args:
        box: of the object.
        anchor: of the other object.
    """
    axes = ((0, 2), (1, 3))
    offset = [(box[low] + box[high] - anchor[low] - anchor[high]) / 2 for low, high in axes]
    sizes = [abs(box[high] - box[low]) + abs(anchor[high] - anchor[low]) for low, high in axes]
    return geneval.relations(offset, sizes)


def check(metadata: Mapping[str, Any]) -> None:
    """Refuses metadata that are not an entry of GenEval's form.

    Args:
        metadata: of one image.

    Raises:
        ValueError: naming the field, and the nearest class or colour.
    """
    geneval.check_entry("geneval", metadata, OBJECTS, COLORS, MAX_OBJECTS, SYNONYMS)


def _confident(detections: Iterable[Detection], threshold: float) -> Objects:
    """The detections above the threshold by class, the most confident first, at most `MAX_OBJECTS` of each."""
    objects: Objects = {}
    for found in sorted(detections, key=lambda detection: -detection.score):
        same = objects.setdefault(found.kind, [])
        if found.score > threshold and len(same) < MAX_OBJECTS:
            same.append(found)
    return objects


def _all_related(seen: Sequence[Detection], relation: str, anchors: Sequence[Detection] | None) -> bool:
    """Whether every object has the relation to every anchor; false if the anchors themselves are wrong."""
    return anchors is not None and all(
        relation in relations(found.box, anchor.box) for found in seen for anchor in anchors
    )


def _closeness(number: int, wanted: int) -> float:
    """1 - |number - wanted| / wanted, at least 0."""
    return max(0.0, 1 - abs(number - wanted) / wanted)
