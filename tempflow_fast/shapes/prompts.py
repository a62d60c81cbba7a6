"""Prompts of the six GenEval task types about coloured shapes, in GenEval's JSONL metadata format.

Every fourth prompt of a task, in a fixed shuffled order, is held out: reinforcement learning never sees it, evaluation
uses only it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from itertools import permutations, product
from pathlib import Path

from tempflow_fast.shapes.world import COLORS, SHAPES

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
HELD_OUT_EVERY = 4
Metadata = dict


def all_prompts() -> list[Metadata]:
    """Every prompt of the world, task by task: `{"tag", "include", ["exclude"], "prompt"}`."""
    return [*_single(), *_two(), *_counting(), *_colors(), *_position(), *_color_attr()]


def train_prompts() -> list[Metadata]:
    """The prompts that reinforcement learning may use."""
    return _split(held_out=False)


def heldout_prompts() -> list[Metadata]:
    """The prompts kept for evaluation; disjoint from `train_prompts()`, every task present."""
    return _split(held_out=True)


def draw(prompts: Sequence[Metadata], count: int, rng: random.Random) -> list[Metadata]:
    """`count` prompts, the tasks in turn, a random prompt of each: GenEval weighs tasks equally, not prompts."""
    by_task = {tag: [m for m in prompts if m["tag"] == tag] for tag in TASKS}
    present = [tag for tag in TASKS if by_task[tag]]
    first = rng.randrange(len(present))
    return [rng.choice(by_task[present[(first + i) % len(present)]]) for i in range(count)]


def write_jsonl(path: Path, prompts: Iterable[Metadata]) -> None:
    """One JSON object a line, as GenEval's `evaluation_metadata.jsonl`."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in prompts))


def _split(held_out: bool) -> list[Metadata]:
    chosen = []
    for tag in TASKS:
        entries = [entry for entry in all_prompts() if entry["tag"] == tag]
        random.Random(tag).shuffle(entries)
        chosen += [entry for i, entry in enumerate(entries) if (i % HELD_OUT_EVERY == 0) == held_out]
    return chosen


def _metadata(tag: str, include: list[dict], text: str, **more: list[dict]) -> Metadata:
    return {"tag": tag, "include": include, **more, "prompt": f"a photo of {text}"}


def _single() -> list[Metadata]:
    return [_metadata("single_object", [{"class": kind, "count": 1}], f"a {kind}") for kind in SHAPES]


def _two() -> list[Metadata]:
    return [
        _metadata("two_object", [{"class": kind, "count": 1} for kind in pair], f"a {pair[0]} and a {pair[1]}")
        for pair in permutations(SHAPES, 2)
    ]


def _counting() -> list[Metadata]:
    return [
        _metadata(
            "counting",
            [{"class": kind, "count": count}],
            f"{word} {_plural(kind)}",
            exclude=[{"class": kind, "count": count + 1}],
        )
        for kind, (count, word) in product(SHAPES, NUMBERS.items())
    ]


def _colors() -> list[Metadata]:
    return [
        _metadata("colors", [{"class": kind, "count": 1, "color": color}], f"a {color} {kind}")
        for kind, color in product(SHAPES, COLORS)
    ]


def _position() -> list[Metadata]:
    return [
        _metadata(
            "position",
            [{"class": anchor, "count": 1}, {"class": kind, "count": 1, "position": [relation, 0]}],
            f"a {kind} {relation} a {anchor}",
        )
        for (kind, anchor), relation in product(permutations(SHAPES, 2), RELATIONS)
    ]


def _color_attr() -> list[Metadata]:
    return [
        _metadata(
            "color_attr",
            [{"class": kind, "count": 1, "color": color} for kind, color in zip(kinds, colors, strict=True)],
            f"a {colors[0]} {kinds[0]} and a {colors[1]} {kinds[1]}",
        )
        for kinds, colors in product(permutations(SHAPES, 2), permutations(COLORS, 2))
    ]


def _plural(kind: str) -> str:
    return kind + ("es" if kind.endswith("s") else "s")
