"""Training prompts in GenEval's form, none of which GenEval's evaluation uses.

    python -m tempflow_fast.rewards.geneval.prompts --count 50000 --output geneval_train.jsonl

The package contains no prompt of the evaluation, only a digest of what each asks for. Two prompts that differ only in
the order of their objects ask for the same, and so do "A left of B" and "B right of A".
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import fail, require, unknown
from ...files import written_aside
from ...geneval import NUMBERS, OPPOSITE, RELATIONS, TASKS, plural
from .names import COLORS, OBJECTS

DIGESTS = Path(__file__).with_name("evaluation_digests.txt")
RATIO = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0}
"""How often training sees each task: Flow-GRPO's ratio (arXiv 2505.05470), which follows how hard the tasks were for
its model. Every single object of COCO is an evaluation prompt, so none is left to train on."""

Entry = dict[str, Any]


def training_prompts(
    count: int, seed: int = 0, ratio: Mapping[str, float] = RATIO, exclude: Sequence[Entry] = ()
) -> list[Entry]:
    """Random entries `{"tag", "include", ["exclude"], "prompt"}`.

    Args:
        count: how many; a small task repeats itself once all its prompts are drawn.
        seed: decides which.
        ratio: task -> weight.
        exclude: entries to leave out, in addition to those of the evaluation.

    Raises:
        ValueError: if a task is unknown, the count or all weights are 0, or a task has no prompt left.
    """
    for task in ratio:
        if task not in TASKS:
            unknown("training_prompts", "task of ratio", task, TASKS)
    tasks = [task for task in TASKS if ratio.get(task, 0) > 0]
    require(count >= 1, "training_prompts", "count", "positive", count)
    require(bool(tasks), "training_prompts", "ratio", "positive for at least one task", dict(ratio))
    single = ratio.get("single_object", 0)
    expected = "0, since the evaluation uses all its prompts"
    require(single == 0, "training_prompts", "single_object of ratio", expected, single)
    rng, banned = random.Random(seed), evaluation_digests() | {digest(entry) for entry in exclude}
    chosen = rng.choices(tasks, [ratio[task] for task in tasks], k=count)
    return [_drawn(task, rng, banned) for task in chosen]


def digest(entry: Mapping[str, Any]) -> str:
    """16 hexadecimal digits, equal for entries that ask for the same.

    Args:
        entry: of GenEval's JSONL.
    """
    include = entry["include"]
    asked = sorted([item["class"], item["count"], item.get("color", "")] for item in include)
    places = []
    for item in include:
        if "position" in item:
            relation, anchor = item["position"]
            pair = (item["class"], relation, include[anchor]["class"])
            places.append(min(pair, (pair[2], OPPOSITE[relation], pair[0])))
    exact = sorted([item["class"], item["count"]] for item in entry.get("exclude", []))
    text = json.dumps([entry["tag"], asked, sorted(places), exact])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@functools.cache
def evaluation_digests() -> frozenset[str]:
    """The digests of GenEval's 553 evaluation prompts."""
    return frozenset(DIGESTS.read_text().split())


def _drawn(task: str, rng: random.Random, banned: frozenset[str] | set[str], attempts: int = 1000) -> Entry:
    for _ in range(attempts):
        entry = _MAKERS[task](rng)
        if digest(entry) not in banned:
            return entry
    fail("training_prompts", "exclude", f"less than all prompts of {task}", f"all that were drawn {attempts} times")


def _entry(tag: str, include: Sequence[Entry], text: str, **more: list[Entry]) -> Entry:
    return {"tag": tag, "include": list(include), **more, "prompt": f"a photo of {text}"}


def _item(kind: str, **more: Any) -> Entry:
    return {"class": kind, "count": 1, **more}


def _single(rng: random.Random) -> Entry:
    kind = rng.choice(OBJECTS)
    return _entry("single_object", [_item(kind)], _a(kind))


def _two(rng: random.Random) -> Entry:
    first, second = rng.sample(OBJECTS, 2)
    return _entry("two_object", [_item(first), _item(second)], f"{_a(first)} and {_a(second)}")


def _counting(rng: random.Random) -> Entry:
    kind, count = rng.choice(OBJECTS), rng.choice(list(NUMBERS))
    include, exclude = ([{"class": kind, "count": number}] for number in (count, count + 1))
    return _entry("counting", include, f"{NUMBERS[count]} {plural(kind)}", exclude=exclude)


def _colors(rng: random.Random) -> Entry:
    kind, color = rng.choice(_COLORABLE), rng.choice(COLORS)
    return _entry("colors", [_item(kind, color=color)], f"{_a(color)} {kind}")


def _position(rng: random.Random) -> Entry:
    (kind, anchor), relation = rng.sample(OBJECTS, 2), rng.choice(RELATIONS)
    include = [_item(anchor), _item(kind, position=[relation, 0])]
    return _entry("position", include, f"{_a(kind)} {relation} {_a(anchor)}")


def _color_attr(rng: random.Random) -> Entry:
    kinds, colors = rng.sample(_COLORABLE, 2), rng.sample(COLORS, 2)
    include = [_item(kind, color=color) for kind, color in zip(kinds, colors, strict=True)]
    return _entry("color_attr", include, " and ".join(f"{_a(item['color'])} {item['class']}" for item in include))


_COLORABLE = tuple(kind for kind in OBJECTS if kind != "person")
_MAKERS = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes training prompts as JSONL.

    Args:
        arguments: of the command line; None: those of this process.
    """
    parser = argparse.ArgumentParser(description="Write training prompts in GenEval's form.")
    parser.add_argument("--count", type=int, default=50_000, help="how many (default: 50000)")
    parser.add_argument("--seed", type=int, default=0, help="decides them (default: 0)")
    parser.add_argument("--output", type=Path, required=True, help="the JSONL file to write")
    options = parser.parse_args(arguments)
    entries = training_prompts(options.count, options.seed)
    with written_aside(options.output) as aside:
        aside.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    print(f"wrote {options.output}: {len(entries)} prompts")


if __name__ == "__main__":
    main()
