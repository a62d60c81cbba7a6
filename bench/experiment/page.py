"""results.jsonl -> docs/experiment.md and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tempflow_fast.files import write_text

from .. import machine
from . import plots
from .analysis import Mean, difference, first_at, reported, shared_end
from .methods import COMPETITORS, NUM_BRANCHES, NUM_STEPS
from .plans import evaluations_of, trained_by
from .ratios import speedup
from .results import Result
from .stages import Design

TARGETS = (0.6, 0.7, 0.8, 0.9, 0.95)
OURS = "tempflow_short"
"""What this package recommends, against which costs are counted."""
AXES = {"evaluations": "evaluations", "work": "evaluations with training", "seconds": "seconds"}
ENOUGH = 5
"""Seeds below which nothing is claimed."""
ORDERINGS = {
    "branching and weighting help: TempFlow-GRPO over Flow-GRPO": ("tempflow", "flow_grpo"),
    "weighting helps": ("tempflow", "tempflow_unweighted"),
    "branching helps": ("tempflow", "flow_grpo_weighted"),
    "seed groups help": ("tempflow", "tempflow_prompt_groups"),
    "a few noisy steps are enough: Flow-GRPO-Fast over Flow-GRPO": ("flow_grpo_fast", "flow_grpo"),
    "chosen steps and short tails over full branching": ("tempflow_short", "tempflow"),
    "chosen steps and short tails over Flow-GRPO": ("tempflow_short", "flow_grpo"),
    "chosen steps and short tails over AWM": ("tempflow_short", "awm"),
}
Line = Mapping[str, object]


def write_page(path: Path, results: Sequence[Result], design: Design) -> None:
    """Writes the page and its picture.

    Args:
        path: of the page; the picture has its name and .png.
        results: all finished runs.
        design: of the experiment.
    """
    parts = [*_head(results, design), *_state(results, design)]
    if any(reported(results, name) for name in COMPETITORS):
        plots.curves(path.with_suffix(".png"), results)
        parts += [f"![Strict accuracy and reward]({path.stem}.png)", *_reported(results)]
    parts += _tuning(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")


def _head(results: Sequence[Result], design: Design) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in machine.facts().items())
    rows = []
    for name in [name for name in COMPETITORS if name in design.methods or reported(results, name)]:
        config = COMPETITORS[name].config()
        rows.append(
            {
                "method": COMPETITORS[name].title,
                "prompts an iteration": config.task.prompts_per_iteration,
                "evaluations": evaluations_of(config),
                "rows trained": trained_by(name),
            }
        )
    return [
        "# The paper's experiment in miniature",
        f"`make experiment` writes this page from its `results.jsonl`. The embedded pipeline is trained on the six "
        f"GenEval tasks of its world, in fp32 without guidance, T = {NUM_STEPS}, K = {NUM_BRANCHES}, CPS noise, two "
        "updates an iteration, AdamW at a constant rate and the other settings of the recipe `shapes`, which was tuned "
        "with TempFlow-GRPO; the learning rate and the noise level are tuned for each method. All methods draw from "
        "the same prompts and share the seeds of the noise. Strict accuracy is of "
        f"{design.eval_images} images of held-out prompts with ten steps, the same ones every time.",
        f"Machine: {facts}. Seconds are those of a shared machine; compare evaluations first.",
        table(rows),
    ]


def _state(results: Sequence[Result], design: Design) -> list[str]:
    """What is shown, or what is done, so that nobody takes a beginning for an end."""
    counts = {name: len(reported(results, name)) for name in design.methods}
    if min(counts.values()) >= ENOUGH:
        return [_summary(results)]
    tuned = sum(result["stage"] == "tuning" for result in results)
    seeds = ", ".join(f"{COMPETITORS[name].title} {count}" for name, count in counts.items())
    return [
        f"**Not finished, so nothing is claimed yet.** Tuning runs done: {tuned}. Reported seeds done, of "
        f"{len(design.seeds)}: {seeds}. The same command continues."
    ]


def _reported(results: Sequence[Result]) -> list[str]:
    shown = {name: runs for name in COMPETITORS if (runs := reported(results, name))}
    end = shared_end([run for runs in shown.values() for run in runs], "evaluations")
    adv_eps = COMPETITORS[OURS].config().grpo.adv_eps
    return [
        "## Evaluations and seconds to a strict accuracy",
        "Means over seeds with 95 % intervals; *k of n* where some seeds have not reached it within the runs so far. "
        "The first crossing counts, interpolated between two evaluations: it favours curves that fluctuate, and "
        "accuracy may fall below the target again.",
        table([_to_targets(name, runs, "evaluations") for name, runs in shown.items()]),
        "With training: a row that is run forward and backward counts as three evaluations.",
        table([_to_targets(name, runs, "work") for name, runs in shown.items()]),
        table([_to_targets(name, runs, "seconds") for name, runs in shown.items()]),
        *_against_ours(shown),
        "## The paper's orderings",
        f"Differences of strict accuracy at equal evaluations of the rollout (at most {end:,.0f}), at equal "
        "evaluations with training and at equal seconds, paired by seed, with 95 % intervals. An ordering holds if its "
        "interval is above 0; it is reversed if that is below. Seconds say the least: runs of one length took up to "
        "three times as long when other jobs were on the machine, and the comparison ends with the shortest.",
        table([line for text, pair in ORDERINGS.items() if (line := _ordering(text, pair, shown))]),
        "## By task, at the end of each run",
        table([_tasks(name, runs) for name, runs in shown.items()]),
        "## During training",
        "Means over the runs. *Spread*: standard deviation of the reward in a group, over all steps and by step. "
        f"Advantages are divided by spread + {adv_eps:g} (`adv_eps`), so late steps count less even without noise "
        "weighting. The signal by step, with and without weighting, is of a fixed policy: [signal.md](signal.md).",
        table([_metrics(name, runs) for name, runs in shown.items()]),
    ]


def _to_targets(name: str, runs: Sequence[Result], axis: str) -> Line:
    line: dict[str, object] = {AXES[axis]: COMPETITORS[name].title}
    for target in TARGETS:
        found = [first_at(run, axis, target) for run in runs]
        reached = [place for place in found if place is not None]
        if len(reached) == len(found):
            mean = Mean.of(reached)
            line[f"{target:g}"] = f"{mean.value:,.0f}" + (f" ± {mean.error:,.0f}" if mean.count > 1 else "")
        else:
            line[f"{target:g}"] = f"{len(reached)} of {len(found)}" if reached else "not reached"
    return line


def _against_ours(shown: Mapping[str, Sequence[Result]]) -> list[str]:
    """How many times the cost of this package's settings the other methods need."""
    if OURS not in shown or len(shown) == 1:
        return []
    lines = []
    for name in (each for each in shown if each != OURS):
        for axis in ("evaluations", "work"):
            line: dict[str, object] = {"method": COMPETITORS[name].title, "cost": AXES[axis]}
            found = {f"{target:g}": speedup(shown[name], shown[OURS], target, axis) for target in TARGETS}
            lines.append(line | {target: ratio for target, ratio in found.items() if ratio is not None})
    return [
        f"How many times the cost of *{COMPETITORS[OURS].title}* to the same accuracy: geometric means over seeds with "
        "95 % intervals.",
        table(lines),
    ]


def _ordering(text: str, pair: tuple[str, str], shown: Mapping[str, Sequence[Result]]) -> Line | None:
    if not all(name in shown for name in pair):
        return None
    line: dict[str, object] = {"ordering": text}
    for axis in ("evaluations", "work", "seconds"):
        found = difference(shown[pair[0]], shown[pair[1]], axis)
        if found is None:
            return None
        line |= {"seeds": found.count, f"at equal {AXES[axis]}": f"{found}, **{_verdict(found)}**"}
    return line


def _verdict(found: Mean) -> str:
    return "holds" if found.value > found.error else "reversed" if found.value < -found.error else "open"


def _summary(results: Sequence[Result]) -> str:
    """What is shown at this scale and what is not, in one paragraph."""
    verdicts: dict[str, list[str]] = {"holds": [], "reversed": [], "open": []}
    for text, pair in ORDERINGS.items():
        if found := difference(*(reported(results, name) for name in pair)):
            verdicts[_verdict(found)].append(text)
    titles = {"holds": "Shown at this scale", "reversed": "The opposite is shown", "open": "Open"}
    said = [f"**{titles[verdict]}**: {'; '.join(texts)}." for verdict, texts in verdicts.items() if texts]
    return " ".join([*said, "At equal evaluations, with 95 % confidence for each ordering alone."])


def _tasks(name: str, runs: Sequence[Result]) -> Line:
    scores = {task: Mean.of([run["tasks"][task][-1] for run in runs]) for task in runs[0]["tasks"]}
    return {"method": COMPETITORS[name].title, **{task: f"{mean.value:.2f}" for task, mean in scores.items()}}


def _metrics(name: str, runs: Sequence[Result]) -> Line:
    names = {"clip_fraction": "clipped ratios", "image_diversity": "diversity in a group", "group_std": "spread"}
    steps = {
        each: f"step {each.rsplit('_', 1)[1]}"
        for each in sorted(runs[0]["metrics"])
        if each.startswith("group_std_step")
    }
    line: dict[str, object] = {"method": COMPETITORS[name].title}
    for metric, title in {**names, **steps}.items():
        # Older results have a spread of 0 where a trajectory takes the noisy steps itself.
        values = [value for run in runs if (value := run["metrics"].get(metric)) or metric == "clip_fraction"]
        if values:
            line[title] = f"{Mean.of(values).value:.3g}"
    return line


def _tuning(results: Sequence[Result]) -> list[str]:
    runs = [result for result in results if result["stage"] == "tuning"]
    if not runs:
        return []
    order = list(COMPETITORS)
    runs.sort(key=lambda run: (order.index(run["method"]), -run["noise_level"], run["learning_rate"], run["seed"]))
    lines = [
        {
            "method": COMPETITORS[run["method"]].title,
            "seed": run["seed"],
            "learning rate": f"{run['learning_rate']:g}",
            "noise": f"{run['noise_level']:g}",
            "evaluations": f"{run['evaluations'][-1]:,.0f}",
            "strict accuracy": f"{run['accuracy'][0]:.3f} -> {run['accuracy'][-1]:.3f}",
        }
        for run in runs
    ]
    return [
        "## Tuning",
        "Training seeds and evaluation noise are never those that are reported; the held-out prompts are the same. "
        "Every method gets as many runs and evaluations. The highest accuracy at the end is chosen; of equal "
        "ones, that with the smallest rate. A run whose weights became infinite or NaN counts as 0.",
        table(lines),
    ]


def table(lines: Sequence[Line]) -> str:
    """A table in Markdown with the columns of all lines."""
    head = list(dict.fromkeys(key for line in lines for key in line))
    rows = [head, ["---"] * len(head), *([str(line.get(key, "-")) for key in head] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
