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
    "branch_step": "The step of the trunk and K = 6 branches for each of 4 rows, with their noise and densities. "
    "*Noise alone* only draws the same number of normals with this package's generator.",
    "euler_step": "Guidance and one deterministic step of 4 rows.",
    "policy_loss": "The clipped loss and its gradient for 4 rows with K = 6 branches and a policy that has changed.",
    "policy_loss, first update": "The same for an unchanged policy: all ratios are 1, and branches are read once.",
    "log_prob": "The density of one step of 4 rows, and its gradient.",
}
Line = Mapping[str, str]


def page(figures: Figures, runs: Mapping[str, Sequence[Run]]) -> str:
    """The text of the page."""
    facts = ", ".join(f"{name} {value}" for name, value in figures.machine.items())
    parts = [
        "# Benchmarks",
        f"Made by `make bench-report` on {figures.date}: {facts}. Every round times all candidates of a row in turn, "
        "on one pinned core with one thread, and the best round of each counts. Only the row with two processes uses "
        "two cores. A figure is measured only after the tests of the measured code have passed. Nothing here ran on a "
        "GPU: see [gpu.md](gpu.md).",
        "## Goals",
        table([goal.line(figures) for goal in GOALS]),
        "## The ops",
        "The first columns show how many times faster each op is than the alternative named in the header. *Ours* is "
        "the best time. *Of a copy* is the time of a copy with the same number of bytes (every input read and every "
        "output written once), as a share of that time. *Per element* is nanoseconds per element written (in "
        "policy_loss: per branch element read). policy_loss needs its ratios before it can weight gradients, so it "
        "reads the branches twice, the second time from the cache if they fit.",
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
        "SD3-style transformers with random weights in float32: 64 image and 16 text tokens, T = 10, K = 6, one seed "
        "per prompt, all weights trained, no autoencoder. *The paper's structure* is `bench/paper.py`: branch steps "
        "one after another, and one network row per branch in training.",
        "![Where the seconds of an iteration go](bench-iteration.png)",
        "### One iteration",
        "*Limit*: forward passes of the paper's structure over ours; a backward pass counts as two. *Outside*: the "
        "share of time outside network and reward, with and without the optimizer's step.",
        table(map(_iteration_line, figures.section("iteration"))),
        "### Rollout",
        table([_ratios(each) for each in figures.section("rollout")]),
        "The wavefront makes one call where the paper's structure makes many with the same rows in total. It gains "
        "only where one of those calls does not fill the machine. Pieces (`max_batch`) keep activations in the cache.",
        "### Training",
        table([_ratios(each) for each in figures.section("training")]),
        "*Stacked*: all branch steps of a trajectory in one call. *Shared*: one call per branch step. *Naive*: one row "
        "per branch. All three give the same gradient.",
        "### Peak memory",
        "MiB of tensors alive at once, without weights, on the smallest network. Training: one call per branch step.",
        table([_memory(each) for each in figures.section("training memory")]),
        table([_memory(each) for each in figures.section("rollout memory")]),
        "### Stage by stage",
        table(map(_stage_line, figures.section("stage by stage"))),
        "The embedded pipeline has its own reward, which a separate thread computes during the other stages; *reward* "
        "is the time left to wait for it.",
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
        return {"": figure.row} | ratios | {"compilation, once": f"{max(compiling.values(), default=0):.0f} s"}

    def distance(row: Mapping[str, float | str]) -> Line:
        return {
            name.replace("_", " "): f"{value:.2g}" if isinstance(value, float) else value for name, value in row.items()
        }

    rows = [row for figure in figures.section("distance") for row in figure.facts["rows"]]
    return [
        "## Cheaper network calls in the rollout",
        '`rollout_precision = "bf16"` and `compile_blocks`, both off by default, compared with the paper\'s structure '
        "in eager float32 with the same number of evaluations. Training stays eager and in float32, and ratios start "
        "at 1.",
        table(map(line, figures.section("cheaper rollouts"))),
        "Distance of such rollouts from the full one on the same noise, in the first iteration of the recipe `shapes`. "
        "The last two rows give the scale: a rollout in other pieces, and one from other noise.",
        table(map(distance, rows)),
    ]


def _runs(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    if not runs:
        return []
    lines = [run.line(label) for label, each in runs.items() for run in each]
    return [
        "## Reward against seconds",
        "Whole runs of the recipe `shapes` on the same machine, two at a time with one thread each "
        "(`make bench-runs`). Seconds are training time, with compilation and without evaluation.",
        "![Reward against seconds](bench-runs.png)",
        table(lines),
    ]


def _scaling(figures: Figures) -> list[str]:
    def line(figure: Figure) -> Line:
        best = figure.facts["best"]
        names = {"1": "one process", "2": "two processes", "apart": "one, next to an unrelated one"}
        times = {text: f"{best[name]:.3g} s" for name, text in names.items()}
        ratios = {"ratio": f"{best['1'] / best['2']:.2f}x", "limit": f"{2 * best['1'] / best['apart']:.2f}x"}
        return {"": figure.row} | times | ratios

    return [
        "## Scaling",
        "Seconds of an iteration on the smallest network as trajectories N, steps T and branches K grow, and of "
        "branch_step as elements D grow. The lines show proportional growth (in forward passes or elements) through "
        "the last point.",
        "![Seconds against every size](bench-scaling.png)",
        table(map(line, figures.section("processes"))),
    ]


def table(lines: Iterable[Line]) -> str:
    """A Markdown table, with columns in order of first appearance; empty without lines."""
    lines = list(lines)
    columns = list(dict.fromkeys(name for line in lines for name in line))
    rows = [columns, ["---"] * len(columns), *([line.get(name, "") for name in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if lines else ""


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("--runs", nargs="*", default=[], metavar="LABEL=DIRECTORY", help="training runs to plot")
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
