"""Scores as text."""

from __future__ import annotations

from pathlib import Path

from ..evaluation.intervals import OVERALL
from ..evaluation.result import Evaluation
from .train import Trained


def score_table(evaluation: Evaluation) -> str:
    """The measures per task, one line each."""
    widths = {name: max(9, len(name)) for name in evaluation.measures}
    lines = [f"{'task':<14} {'images':>6}" + "".join(f" {name:>{width}}" for name, width in widths.items())]
    for task, row in evaluation.table().items():
        means = "".join(f" {row[name]:>{width}.3f}" for name, width in widths.items())
        lines.append(f"{task:<14} {row['num_images']:>6.0f}{means}")
    return "\n".join(lines)


def change_table(before: Evaluation, after: Evaluation) -> str:
    """The first measure per task before and after, and the difference."""
    (name, *_), first, second = before.measures, before.table(), after.table()
    lines = [f"{'task':<14} {'images':>6} {'before':>7} {'after':>7} {'change':>7}"]
    for task, row in first.items():
        old, new = row[name], second[task][name]
        lines.append(f"{task:<14} {row['num_images']:>6.0f} {old:>7.3f} {new:>7.3f} {new - old:>+7.3f}")
    return "\n".join(lines)


def closing_lines(trained: Trained, directory: Path) -> str:
    """What changed, by how much, what to run next: three lines."""
    cost = f"{trained.num_iterations} iterations in {trained.seconds:.0f} s"
    prompt = trained.before.metadata[0]["prompt"]
    next_line = f'Next: tempflow-fast sample --weights "{directory}" --prompt "{prompt}" --output samples.png'
    if trained.after is None:
        return f"Scored before training only.\nBy how much the {cost} helped is not known.\n{next_line}"
    before, after, (name, *_) = trained.before.table(), trained.after.table(), trained.before.measures
    gains = {task: after[task][name] - before[task][name] for task in before}
    overall = gains.pop(OVERALL)
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    # The two scores share prompts and noise, so the error is that of the mean difference.
    difference = trained.after.measures[name] - trained.before.measures[name]
    error = difference.std(correction=0).item() / len(difference) ** 0.5
    old, new = before[OVERALL], after[OVERALL]
    label, reward = {
        "accuracy": ("strict accuracy", f" (reward {old['reward']:.3f} -> {new['reward']:.3f})"),
        "reward": ("reward", ""),
    }[name]
    by_task = f"; most in {best} ({gains[best]:+.3f}), least in {worst} ({gains[worst]:+.3f})" if len(gains) > 1 else ""
    return "\n".join(
        [
            f"{'Improved' if overall > 0 else 'Not improved'}: {label} on {len(difference)} images of held-out "
            f"prompts, {old[name]:.3f} -> {new[name]:.3f}{reward}.",
            f"By {overall:+.3f} +- {error:.3f} in {cost}{by_task}.",
            next_line,
        ]
    )
