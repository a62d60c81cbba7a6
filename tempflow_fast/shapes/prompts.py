"""Prompts of the six GenEval task types about coloured shapes, in GenEval's JSONL metadata format.

Every fourth prompt of a task, in a fixed shuffled order, is held out: it is used only for evaluation, never for
reinforcement learning. Independently of that, every sixth combination of two shapes with two colours, or with an axis,
is new to the packaged pipeline: pretraining uses none of its prompts, in any order or direction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import combinations, permutations, product

from tempflow_fast.errors import fail
from tempflow_fast.geneval import NUMBERS, OPPOSITE, RELATIONS, TASKS, plural
from tempflow_fast.shapes.world import COLORS, SHAPES

BINDING = ("position", "color_attr")
HELD_OUT_EVERY = 4
UNSEEN_EVERY = 6
Metadata = dict


def all_prompts() -> list[Metadata]:
    """Every prompt of the world, by task: `{"tag", "include", "prompt"}`, and `"exclude"` for counting."""
    return [*_single(), *_two(), *_counting(), *_colors(), *_position(), *_color_attr()]


def train_prompts() -> list[Metadata]:
    """The prompts that reinforcement learning may use."""
    return _split(held_out=False)


def heldout_prompts() -> list[Metadata]:
    """The prompts kept for evaluation, of every task; disjoint from `train_prompts()`."""
    return _split(held_out=True)


def pretraining_prompts() -> list[Metadata]:
    """The prompts that pretraining uses."""
    return [entry for entry in all_prompts() if _combination(entry) not in _unseen()]


def unseen_prompts() -> list[Metadata]:
    """The prompts of `position` and `color_attr` whose combination of words is not in pretraining."""
    return [entry for entry in all_prompts() if _combination(entry) in _unseen()]


def opposite(entry: Metadata) -> Metadata:
    """The prompt with the same words bound the other way: the opposite relation, or the two colours swapped.

    Args:
        entry: a prompt of `position` or `color_attr`.

    Raises:
        ValueError: a prompt of another task, which binds no words.
    """
    if entry["tag"] not in BINDING:
        fail("opposite", "entry", f"a prompt of {' or '.join(BINDING)}", f"one of {entry['tag']}")
    first, second = entry["include"]
    if entry["tag"] == "position":
        return _placed(second["class"], OPPOSITE[second["position"][0]], first["class"])
    return _colored((first["class"], second["class"]), (second["color"], first["color"]))


def draw(prompts: Sequence[Metadata], count: int, rng: random.Random) -> list[Metadata]:
    """Random prompts, taking the tasks in turn, since GenEval gives tasks equal weight, not prompts.

    Args:
        prompts: the prompts to draw from; tasks without one are skipped.
        count: number of prompts.
        rng: chooses the first task and the prompts.
    """
    by_task = {tag: [m for m in prompts if m["tag"] == tag] for tag in TASKS}
    present = [tag for tag in TASKS if by_task[tag]]
    first = rng.randrange(len(present))
    return [rng.choice(by_task[present[(first + i) % len(present)]]) for i in range(count)]


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
            f"{word} {plural(kind)}",
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
    return [_placed(kind, relation, anchor) for (kind, anchor), relation in product(permutations(SHAPES, 2), RELATIONS)]


def _placed(kind: str, relation: str, anchor: str) -> Metadata:
    include = [{"class": anchor, "count": 1}, {"class": kind, "count": 1, "position": [relation, 0]}]
    return _metadata("position", include, f"a {kind} {relation} a {anchor}")


def _color_attr() -> list[Metadata]:
    return [_colored(kinds, colors) for kinds, colors in product(permutations(SHAPES, 2), permutations(COLORS, 2))]


def _colored(kinds: Sequence[str], colors: Sequence[str]) -> Metadata:
    include = [{"class": kind, "count": 1, "color": color} for kind, color in zip(kinds, colors, strict=True)]
    return _metadata("color_attr", include, f"a {colors[0]} {kinds[0]} and a {colors[1]} {kinds[1]}")


def _combination(entry: Metadata) -> tuple | None:
    """What a prompt binds, ignoring order and direction: its two shapes with its two colours or its relation's axis."""
    if entry["tag"] not in BINDING:
        return None
    first, second = entry["include"]
    if entry["tag"] == "color_attr":
        words = {first["color"], second["color"]}
    else:
        relation = second["position"][0]
        words = {relation, OPPOSITE[relation]}
    return entry["tag"], frozenset((first["class"], second["class"])), frozenset(words)


@cache
def _unseen() -> frozenset[tuple]:
    """Every sixth combination of each binding task, in a fixed shuffled order."""
    words = {"position": (RELATIONS[:2], RELATIONS[2:]), "color_attr": tuple(combinations(COLORS, 2))}
    unseen = []
    for tag, choices in words.items():
        found = [(tag, frozenset(k), frozenset(w)) for k, w in product(combinations(SHAPES, 2), choices)]
        random.Random(tag).shuffle(found)
        unseen += found[::UNSEEN_EVERY]
    return frozenset(unseen)
