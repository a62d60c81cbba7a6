"""Runs what is left of the experiment and writes its page."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from .methods import COMPETITORS
from .page import write_page
from .results import current, read_results
from .stages import Design, run_all

ROOT = Path(__file__).parents[2]
QUICK = Design(
    methods=("tempflow_short", "awm"),
    learning_rates=(4e-4,),
    noise_levels=(0.8,),
    seeds=(1,),
    budget=400,
    spacing=200,
    eval_images=12,
    prompts=4,
)
"""A toy: two methods, nothing to choose, an iteration or two."""


def main(arguments: list[str] | None = None) -> int:
    """Runs and writes; the status is 1 if a run failed, 130 after Ctrl-C.

    Args:
        arguments: of the command line.
    """
    given = _parser().parse_args(arguments)
    design = QUICK if given.quick else Design(methods=given.methods)
    if given.budget:
        design = replace(design, budget=given.budget)
    results = given.page.parent / given.page.stem / "results.jsonl"
    try:
        if not given.page_only:
            run_all(design, given.output, results, given.jobs, lambda line: print(line, flush=True))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    finally:
        if known := read_results(results):
            kept = current(known)
            if len(kept) < len(known):
                print(f"left out: {len(known) - len(kept)} results of settings that have changed since", flush=True)
            write_page(given.page, kept, design)
            print(f"wrote {given.page}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.experiment", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/experiment", help="directory of the runs")
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs/experiment.md", help="page; its results are next to it"
    )
    parser.add_argument("--budget", type=int, help="network evaluations of a reported run; more continues the runs")
    parser.add_argument("--methods", nargs="+", choices=COMPETITORS, default=tuple(COMPETITORS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="a toy of the experiment, in half a minute")
    parser.add_argument("--page-only", action="store_true", help="run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
