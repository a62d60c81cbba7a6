"""GenEval's table of scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import require
from ...geneval import TASKS

ASKED = ("tag", "prompt", "include", "exclude")
"""Fields that say what a prompt asks for; another one, such as a number, may differ between its images."""
Table = dict[str, dict[str, float]]


def score_table(metadata: Sequence[Mapping[str, Any]], correct: Sequence[float]) -> Table:
    """The published table of R images: for each task and `overall` accuracy, num_images, num_prompts, prompt_accuracy.

    Args:
        metadata: R entries; those of images of one prompt ask for the same.
        correct: R numbers, 1 or 0.

    Returns:
        One row per task that occurs, in the order of `TASKS`. The `accuracy` of `overall` is the mean over the tasks,
        and its `image_accuracy` the mean over all images. `prompt_accuracy` counts prompts with at least one correct
        image.

    Raises:
        ValueError: if there is no image, or not one number per image.
    """
    fits = len(metadata) == len(correct) > 0
    require(fits, "score_table", "correct", "one number per image", f"{len(correct)} for {len(metadata)}")
    keys = [json.dumps([entry.get(name) for name in ASKED], sort_keys=True) for entry in metadata]
    rows: Table = {}
    for task in TASKS:
        places = [place for place, entry in enumerate(metadata) if entry["tag"] == task]
        if places:
            rows[task] = _row([keys[place] for place in places], [float(correct[place]) for place in places])
    overall = _row(keys, [float(value) for value in correct])
    mean_of_tasks = sum(row["accuracy"] for row in rows.values()) / len(rows)
    rows["overall"] = {**overall, "accuracy": mean_of_tasks, "image_accuracy": overall["accuracy"]}
    return rows


def markdown(table: Table) -> str:
    """The table as Markdown, accuracies in percent.

    Args:
        table: as `score_table` returns it.
    """
    lines = ["| task | images | accuracy | prompts | with a right image |", "| --- | ---: | ---: | ---: | ---: |"]
    for task, row in table.items():
        numbers = (row["num_images"], row["accuracy"], row["num_prompts"], row["prompt_accuracy"])
        lines.append("| {} | {:.0f} | {:.2%} | {:.0f} | {:.2%} |".format(task, *numbers))
    return "\n".join(lines) + "\n"


PAPER = {
    "overall": "Overall",
    "single_object": "Single obj.",
    "two_object": "Two obj.",
    "counting": "Counting",
    "colors": "Colors",
    "position": "Position",
    "color_attr": "Attr. binding",
}
"""The columns of the table in papers, in order."""


def paper_table(tables: Mapping[str, Table]) -> str:
    """The table of papers as Markdown: one row per model, one column per task, accuracies in [0, 1].

    Args:
        tables: name of the row -> what `score_table` returned; a missing task is a dash.
    """
    lines = [f"| | {' | '.join(PAPER.values())} |", "| --- |" + " ---: |" * len(PAPER)]
    for name, table in tables.items():
        cells = [f"{table[task]['accuracy']:.2f}" if task in table else "-" for task in PAPER]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(keys: Sequence[str], correct: Sequence[float]) -> dict[str, float]:
    best: dict[str, float] = {}
    for key, value in zip(keys, correct, strict=True):
        best[key] = max(best.get(key, 0.0), value)
    return {
        "accuracy": sum(correct) / len(correct),
        "num_images": len(correct),
        "num_prompts": len(best),
        "prompt_accuracy": sum(best.values()) / len(best),
    }
