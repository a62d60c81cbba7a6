"""An evaluation as Markdown and JSON: means with intervals, GenEval's table, differences from another evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..geneval import TASKS
from ..rewards.geneval.table import paper_table, score_table
from .intervals import Interval
from .result import Evaluation

ByTask = Mapping[str, Mapping[str, Interval]]
"""Task -> measure -> interval."""


def report(evaluation: Evaluation, facts: Mapping[str, Any]) -> str:
    """Writes the Markdown of an evaluation.

    Args:
        evaluation: the scores.
        facts: what they depend on, by name.
    """
    sections = ["# Evaluation", _facts(facts), _table(evaluation, evaluation.intervals()), NOTE]
    if tables := geneval_tables(evaluation):
        sections += ["## GenEval", GENEVAL_NOTE, paper_table(tables)]
    return "\n\n".join(sections) + "\n"


def comparison(
    evaluation: Evaluation, facts: Mapping[str, Any], differences: ByTask, old: Evaluation, old_facts: Mapping[str, Any]
) -> str:
    """Writes the Markdown of paired differences, with the settings that differ.

    Args:
        evaluation: the scores.
        facts: what they depend on, by name.
        differences: of `evaluation` from `old`.
        old: the other evaluation.
        old_facts: what its scores depend on.
    """
    changed = {
        name: f"{old_facts.get(name)} -> {value}" for name, value in facts.items() if old_facts.get(name) != value
    }
    sections = ["## Difference from another evaluation", _facts(changed), _table(evaluation, differences), PAIRED_NOTE]
    both = {"the other": geneval_tables(old), "this": geneval_tables(evaluation)}
    tables = {f"{measure}, {who}": table for who, found in both.items() for measure, table in found.items()}
    if tables:
        sections += [paper_table(tables)]
    return "\n\n".join(filter(None, sections)) + "\n"


def as_json(evaluation: Evaluation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every score, the means and their intervals, ready for JSON.

    Args:
        evaluation: the scores.
        facts: what they depend on, by name.
    """
    columns = {name: values.tolist() for name, values in evaluation.measures.items()}
    return {
        "settings": dict(facts),
        "table": intervals_as_json(evaluation.intervals()),
        "images": [
            {
                "row": row,
                "prompt": entry["prompt"],
                "tag": tag,
                **{name: values[row] for name, values in columns.items()},
            }
            for row, (entry, tag) in enumerate(zip(evaluation.metadata, evaluation.tags, strict=True))
        ],
    }


def intervals_as_json(table: ByTask) -> dict[str, Any]:
    """Returns task -> measure -> mean, low and high.

    Args:
        table: the intervals.
    """
    return {task: {name: asdict(interval) for name, interval in row.items()} for task, row in table.items()}


def geneval_tables(evaluation: Evaluation) -> dict[str, dict[str, dict[str, float]]]:
    """Returns GenEval's table for each measure that is a verdict, 0 or 1 for every image.

    Args:
        evaluation: the scores.

    Returns:
        Measure -> task -> column -> value; empty unless all prompts belong to GenEval's six tasks.
    """
    if not set(evaluation.tags) <= set(TASKS):
        return {}
    verdicts = {name: v for name, v in evaluation.measures.items() if ((v == 0) | (v == 1)).all()}
    return {name: score_table(evaluation.metadata, values.tolist()) for name, values in verdicts.items()}


NOTE = (
    "Means with 95 % intervals from a bootstrap over the prompts of each task; overall is the mean of the tasks. The "
    "intervals show how far the choice of prompts and noise may have moved a mean, not how good a reward is."
)
PAIRED_NOTE = (
    "Mean differences, image by image, for the same prompts and the same noise, with 95 % intervals. Where an interval "
    "excludes 0, the evaluations differ by more than the choice of prompts and noise explains."
)
GENEVAL_NOTE = "As in papers: the share of images that are right per task, and the mean of the tasks."


def _facts(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)


def _table(evaluation: Evaluation, intervals: ByTask) -> str:
    names = list(next(iter(intervals.values())))
    numbers = {task: row["num_images"] for task, row in evaluation.table().items()}
    lines = [f"| task | images | {' | '.join(names)} |", "| --- | ---: |" + " ---: |" * len(names)]
    for task, row in intervals.items():
        lines.append(f"| {task} | {numbers[task]} | {' | '.join(str(row[name]) for name in names)} |")
    return "\n".join(lines)
