"""The tables and the last lines that commands print."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..evaluation.evaluate import heldout
from ..evaluation.intervals import OVERALL, standard_error
from ..evaluation.result import Evaluation
from ..grpo.geometry import Geometry
from ..ops.info import bodies_on
from ..policies import DiffusersPolicy
from ..policies.lora import described
from ..policies.schedule import is_euler
from ..processes import Processes
from ..rewards import code_in
from ..settings.recipes import get_recipe
from ..settings.run import TrainConfig, differences
from ..text import printable, shortened
from .train import Trained


def opening_lines(
    config: TrainConfig, policy: DiffusersPolicy, directory: Path, processes: Processes, recipe: str | None
) -> str:
    """Writes what a run is about to do, one fact per line.

    Args:
        config: the settings.
        policy: the model.
        directory: the run directory.
        processes: those that share the run.
        recipe: the recipe to compare the settings with, "" for the defaults; None: nothing.
    """
    task, grpo, trained = config.task, config.grpo, policy.parameters()
    total, count = sum(p.numel() for p in policy.network.parameters()), sum(p.numel() for p in trained)
    sets, shown = heldout(config)
    train, held_out = sets.everything()
    geometry = Geometry(grpo, task.prompts_per_iteration, processes.count, seed=task.seed << 32)
    lines = {
        "model": f"{config.policy.model} by {type(policy).__name__}, {total:,} parameters",
        "trained": f"{count:,} in {str(trained[0].dtype).removeprefix('torch.')}, {described(policy.network) or 'all'}",
        "prompts": f"{len(train)} of {task.prompts}, {len(held_out)} held out; evaluation with {len(shown)} images",
        "iteration": f"{geometry.images.num_rows} {_made(policy)} of {task.prompts_per_iteration} prompts x "
        f"{grpo.num_seeds} seeds, by {grpo.num_steps} steps{_instead(policy)}; reward {task.reward}",
        "device": f"{policy.device}, {config.policy.precision}, {processes.kind}; ops {bodies_on(policy.device.type)}",
        "output": f"{directory}, seed {task.seed}",
    }
    if recipe is not None:
        changed = differences(get_recipe(recipe) if recipe else TrainConfig(), config)
        values = ", ".join(f"{name} {shortened(value)}" for name, (_, value) in changed.items())
        lines["settings"] = f"{recipe or 'the defaults'}{', but ' if values else ''}{values}"
    return "\n".join(f"{name:<10} {printable(line)}" for name, line in lines.items())


def _made(policy: DiffusersPolicy) -> str:
    return "images" if policy.num_frames is None else f"videos of {policy.num_frames} frames"


def _instead(policy: DiffusersPolicy) -> str:
    """Says which rule of the pipeline the rollout does not follow."""
    scheduler = policy.pipeline.scheduler
    return "" if is_euler(scheduler) else f" of Euler instead of {type(scheduler).__name__}"


def score_table(evaluation: Evaluation) -> str:
    """Writes the mean of each measure per task, one line per task.

    Args:
        evaluation: the scores.
    """
    widths = {name: max(9, len(name)) for name in evaluation.measures}
    lines = [f"{'task':<14} {'images':>6}" + "".join(f" {name:>{width}}" for name, width in widths.items())]
    for task, row in evaluation.table().items():
        means = "".join(f" {row[name]:>{width}.3f}" for name, width in widths.items())
        lines.append(f"{printable(task):<14} {row['num_images']:>6.0f}{means}")
    return "\n".join(lines)


def change_table(before: Evaluation, after: Evaluation) -> str:
    """Writes the mean of the first measure per task before and after, and the difference.

    Args:
        before: scores of the starting weights.
        after: scores of the tuned weights.
    """
    (name, *_), first, second = before.measures, before.table(), after.table()
    lines = [f"{'task':<14} {'images':>6} {'before':>7} {'after':>7} {'change':>7}"]
    for task, row in first.items():
        old, new = row[name], second[task][name]
        lines.append(f"{printable(task):<14} {row['num_images']:>6.0f} {old:>7.3f} {new:>7.3f} {new - old:>+7.3f}")
    return "\n".join(lines)


def closing_lines(trained: Trained, directory: Path, policy: str | None = None) -> str:
    """Writes three lines: what changed, by how much, and the command to run next.

    The number after +- is the `standard_error` of the gain, over images of the same prompts.

    Args:
        trained: the result of a run.
        directory: the run directory.
        policy: name of the policy in the settings; one that is code needs consent again.
    """
    cost = f"{trained.num_iterations} iterations in {trained.seconds:.0f} s"
    prompt = trained.before.metadata[0]["prompt"]
    command = ["tempflow-fast", "sample", "--weights", str(directory), "--prompt", prompt, "--output", "samples.png"]
    command += ["--allow-code"] if policy is not None and code_in(policy) else []
    next_line = f"Next: {printable(shlex.join(command))}"
    if trained.after is None:
        return f"Scored before training only.\nThe effect of {cost} is not known.\n{next_line}"
    before, after, (name, *_) = trained.before.table(), trained.after.table(), trained.before.measures
    gains = {task: after[task][name] - before[task][name] for task in before}
    overall = gains.pop(OVERALL)
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    difference = trained.after.measures[name] - trained.before.measures[name]  # of images with equal prompts and noise
    error = standard_error(difference, trained.after.tags)
    old, new = before[OVERALL], after[OVERALL]
    label, reward = {
        "accuracy": ("strict accuracy", f" (reward {old['reward']:.3f} -> {new['reward']:.3f})"),
        "reward": ("reward", ""),
    }[name]
    extremes = f"; most in {best} ({gains[best]:+.3f}), least in {worst} ({gains[worst]:+.3f})"
    by_task = printable(extremes) if len(gains) > 1 else ""
    return "\n".join(
        [
            f"{_verdict(overall)}: {label} on {len(difference)} images of held-out "
            f"prompts, {old[name]:.3f} -> {new[name]:.3f}{reward}.",
            f"By {overall:+.3f} +- {error:.3f} in {cost}{by_task}.",
            next_line,
        ]
    )


def _verdict(change: float) -> str:
    """In a word, of a change that is shown with three digits."""
    rounded = round(change, 3)
    return "Unchanged" if rounded == 0 else "Improved" if rounded > 0 else "Not improved"
