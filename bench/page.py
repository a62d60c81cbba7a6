"""Figures -> docs/benchmarks.md and its pictures: `python -m bench.page figures.json [--runs LABEL=DIRECTORY ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from . import op_cases, plots
from .figures import Figure, Figures
from .goals import GOALS, of_copy, of_limit, outside
from .runs import Run, read_runs

PAGE = Path("docs/benchmarks.md")
OPS = {
    "branch_step": "The trunk's move and K = 6 branches of 4 rows, with their noise and densities. *Noise alone* "
    "draws as many normals with this package's generator and does nothing else.",
    "euler_step": "Guidance and a deterministic step of 4 rows.",
    "policy_loss": "The clipped loss of 4 rows with K = 6 branches and its gradient, of a policy that has changed.",
    "policy_loss, first update": "The same for the policy that acted: all ratios are 1, branches are read once.",
    "log_prob": "The density of a step of 4 rows and its gradient.",
}
Line = Mapping[str, str]


def page(figures: Figures, runs: Mapping[str, Sequence[Run]]) -> str:
    """The whole text."""
    facts = ", ".join(f"{name} {value}" for name, value in figures.machine.items())
    parts = [
        "# Benchmarks",
        f"Made by `make bench-report` on {figures.date}: {facts}. All candidates of a row were timed in turn within "
        "every round, on one pinned core with one thread, and the best round of each counts; only two processes use "
        "two cores. A figure is made only after the tests of what it measures have passed. Nothing here ran on a "
        "GPU: [gpu.md](gpu.md).",
        "## Goals",
        table([goal.line(figures) for goal in GOALS]),
        "## The ops",
        "Times faster than what stands in the head of the column; the last columns: best time, the share that a copy "
        "of as many bytes would take (every input read, every output written once), and nanoseconds per element "
        "written (in policy_loss: per branch element read). A policy_loss has to know its ratios before it can weigh "
        "gradients: it reads the branches twice, the second time from the cache where they fit.",
        "![Times faster than PyTorch](bench-ops.png)",
    ]
    for op, text in OPS.items():
        parts += [f"### {op}", text, table(map(_op_line, figures.section(op)))]
    parts += [*_structure(figures), *_cheaper(figures), *_runs(runs), *_scaling(figures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _op_line(figure: Figure) -> Line:
    others = [name for name in figure.seconds if name not in (op_cases.OURS, op_cases.COPY, op_cases.NOISE)]
    line = {"": figure.row} | {name: f"{figure.ratio(name):.1f}x" for name in sorted(others, key=_order)}
    seconds = figure.seconds[op_cases.OURS]
    line |= {"ours": f"{seconds * 1e3:.2f} ms", "of a copy": f"{of_copy(figure):.0%}"}
    line |= {"per element": f"{seconds / figure.facts['num_outputs'] * 1e9:.2f} ns"}
    if op_cases.NOISE in figure.seconds:
        line |= {"noise alone": f"{figure.seconds[op_cases.NOISE] / figure.facts['num_outputs'] * 1e9:.2f} ns"}
    return line


def _order(name: str) -> int:
    return (*op_cases.EAGER, *op_cases.COMPILERS).index(name)


def _structure(figures: Figures) -> list[str]:
    return [
        "## The structure",
        "Transformers of SD3's kind with random weights in float32, 64 image and 16 text tokens, T = 10, K = 6, one "
        "seed per prompt, all weights trained, no autoencoder. *The paper's structure* is `bench/paper.py`: branch "
        "steps one after another, and a network row for every branch in training.",
        "![Where the seconds of an iteration go](bench-iteration.png)",
        "### One iteration",
        "*Limit*: forward passes of the paper's structure over ours, a backward pass being two. *Outside*: neither "
        "network nor reward, with and without the optimizer's step.",
        table(map(_iteration_line, figures.section("iteration"))),
        "### Rollout",
        table([_ratios(each) for each in figures.section("rollout")]),
        "The wavefront makes one call where the paper's structure makes many, of the same rows: it gains where a call "
        "does not fill the machine, and nothing else. Pieces (`max_batch`) keep activations in a cache.",
        "### Training",
        table([_ratios(each) for each in figures.section("training")]),
        "*Stacked*: all branch steps of a trajectory in one call; *shared*: one call per branch step; *naive*: a row "
        "per branch. All have the same gradient.",
        "### Peak memory",
        "MiB of tensors alive at once beyond weights, on the smallest network. Training: one call per branch step.",
        table([_memory(each) for each in figures.section("training memory")]),
        table([_memory(each) for each in figures.section("rollout memory")]),
        "### Stage by stage",
        table(map(_stage_line, figures.section("stage by stage"))),
        "The embedded pipeline has its own reward, which is computed in a thread beside the others; *reward* is what "
        "was left to wait for it.",
    ]


def _iteration_line(figure: Figure) -> Line:
    (ours, papers), parts = figure.seconds.values(), figure.facts["parts"]
    mine, theirs = parts.values()

    def both(name: str) -> str:
        return f"{theirs[name]:.3g} / {mine[name]:.3g} s"

    return {
        "network": figure.row,
        "evaluations, paper / ours": f"{theirs['evaluations']} / {mine['evaluations']}",
        "calls": f"{theirs['calls']} / {mine['calls']}",
        "rollout": both("rollout"),
        "training": both("train"),
        "whole": f"{papers:.3g} / {ours:.3g} s",
        "ratio": f"{papers / ours:.2f}x",
        "of the limit": f"{of_limit(figure):.1%} of {figure.facts['limit']:.2f}x",
        "outside": f"{outside(figure):.1%}, {outside(figure, with_optimizer=False):.1%}",
    }


def _ratios(figure: Figure) -> Line:
    seconds = figure.seconds
    line = {"network": figure.row} | {name: f"{value:.3g} s" for name, value in seconds.items()}
    slowest = list(seconds)[-1]
    return line | {f"{slowest} / {name}": f"{seconds[slowest] / seconds[name]:.2f}x" for name in list(seconds)[:-1]}


def _memory(figure: Figure) -> Line:
    return {"": figure.row} | {name: f"{value:.1f}" for name, value in figure.facts["mib"].items()}


def _stage_line(figure: Figure) -> Line:
    parts = figure.facts["parts"]["ours"]
    stages = {name: f"{parts[name]:.3f} s" for name in ("encode", "rollout", "decode", "reward", "train")}
    shares = {"network": f"{parts['network'] / parts['total']:.1%}", "outside": f"{outside(figure):.2%}"}
    return {"": figure.row, "iteration": f"{figure.seconds['ours']:.2f} s"} | stages | shares


def _cheaper(figures: Figures) -> list[str]:
    def line(figure: Figure) -> Line:
        papers = figure.seconds["the paper's structure"]
        ratios = {name: f"{value:.3g} s, {papers / value:.2f}x" for name, value in figure.seconds.items()}
        compiling = figure.facts["compiling"]
        return {"": figure.row} | ratios | {"compiling, once": f"{max(compiling.values(), default=0):.0f} s"}

    def distance(row: Mapping[str, float | str]) -> Line:
        return {
            name.replace("_", " "): f"{value:.2g}" if isinstance(value, float) else value for name, value in row.items()
        }

    rows = [row for figure in figures.section("distance") for row in figure.facts["rows"]]
    return [
        "## Cheaper network calls in the rollout",
        '`rollout_precision = "bf16"` and `compile_blocks`, both off by default, against the paper\'s structure run '
        "eagerly in float32 with the same evaluations. Training stays eager and in float32, and ratios start at 1.",
        table(map(line, figures.section("cheaper rollouts"))),
        "How far such rollouts are from the full one on the same noise, in the first iteration of the recipe `shapes`; "
        "the last two rows say what counts as near.",
        table(map(distance, rows)),
    ]


def _runs(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    if not runs:
        return []
    lines = [run.line(label) for label, each in runs.items() for run in each]
    return [
        "## Reward against seconds",
        "Whole runs of the recipe `shapes` on the same machine, two at a time with one thread each: `make bench-runs`. "
        "Seconds are those of training, compiling included, without evaluation.",
        "![Reward against seconds](bench-runs.png)",
        table(lines),
    ]


def _scaling(figures: Figures) -> list[str]:
    def line(figure: Figure) -> Line:
        best = figure.facts["best"]
        names = {"1": "one process", "2": "two", "apart": "one, beside another that has nothing to do with it"}
        times = {text: f"{best[name]:.3g} s" for name, text in names.items()}
        ratios = {"ratio": f"{best['1'] / best['2']:.2f}x", "limit": f"{2 * best['1'] / best['apart']:.2f}x"}
        return {"": figure.row} | times | ratios

    return [
        "## Scaling",
        "An iteration on the smallest network against trajectories N, steps T and branches K, and branch_step against "
        "elements D: lines are the law, forward passes or elements, through the last point.",
        "![Seconds against every size](bench-scaling.png)",
        table(map(line, figures.section("processes"))),
    ]


def table(lines: Iterable[Line]) -> str:
    """Markdown; columns in the order of their first appearance, nothing without lines."""
    lines = list(lines)
    columns = list(dict.fromkeys(name for line in lines for name in line))
    rows = [columns, ["---"] * len(columns), *([line.get(name, "") for name in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if lines else ""


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--runs", nargs="*", default=[], metavar="LABEL=DIRECTORY", help="training runs to draw")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    figures, runs = Figures(options.figures), read_runs(options.runs)
    plots.ops(options.output.with_name("bench-ops.png"), figures)
    plots.iterations(options.output.with_name("bench-iteration.png"), figures)
    plots.scaling(options.output.with_name("bench-scaling.png"), figures)
    if runs:
        plots.runs(options.output.with_name("bench-runs.png"), runs)
    options.output.write_text(page(figures, runs))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
