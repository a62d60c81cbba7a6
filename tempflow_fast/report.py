"""Scores as text."""

from __future__ import annotations

from pathlib import Path

from .evaluate import OVERALL, Evaluation
from .train import Trained


def score_table(evaluation: Evaluation) -> str:
    """Accuracy and reward per task, one line each."""
    lines = [f"{'task':<14} {'images':>6} {'accuracy':>9} {'reward':>7}"]
    for task, row in evaluation.table().items():
        lines.append(f"{task:<14} {row['num_images']:>6.0f} {row['accuracy']:>9.3f} {row['reward']:>7.3f}")
    return "\n".join(lines)


def change_table(before: Evaluation, after: Evaluation) -> str:
    """Accuracy per task before and after, and the difference."""
    first, second = before.table(), after.table()
    lines = [f"{'task':<14} {'images':>6} {'before':>7} {'after':>7} {'change':>7}"]
    for task, row in first.items():
        old, new = row["accuracy"], second[task]["accuracy"]
        lines.append(f"{task:<14} {row['num_images']:>6.0f} {old:>7.3f} {new:>7.3f} {new - old:>+7.3f}")
    return "\n".join(lines)


def closing_lines(trained: Trained, directory: Path) -> str:
    """What changed, by how much, what to run next: three lines."""
    cost = f"{trained.num_iterations} iterations in {trained.seconds:.0f} s"
    prompt = trained.before.metadata[0]["prompt"]
    next_line = f'Next: tempflow-fast sample --weights "{directory}" --prompt "{prompt}" --output samples.png'
    if trained.after is None:
        return f"Scored before training only.\nBy how much the {cost} helped is not known.\n{next_line}"
    before, after = trained.before.table(), trained.after.table()
    gains = {task: after[task]["accuracy"] - before[task]["accuracy"] for task in before}
    overall = gains.pop(OVERALL)
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    # The two scores share prompts and noise, so the error is that of the mean difference.
    difference = trained.after.accuracy - trained.before.accuracy
    error = difference.std(correction=0).item() / len(difference) ** 0.5
    return "\n".join(
        [
            f"{'Improved' if overall > 0 else 'Not improved'}: strict accuracy on {len(difference)} images of held-out "
            f"prompts, {before[OVERALL]['accuracy']:.3f} -> {after[OVERALL]['accuracy']:.3f} "
            f"(reward {before[OVERALL]['reward']:.3f} -> {after[OVERALL]['reward']:.3f}).",
            f"By {overall:+.3f} +- {error:.3f} in {cost}; most in {best} ({gains[best]:+.3f}), "
            f"least in {worst} ({gains[worst]:+.3f}).",
            next_line,
        ]
    )
