"""Run `python -m bench.gpu [--stages NAMES] [--output DIR] [--wheels DIR] [--require]` in the repository's root.

The exit status is 0 if everything passed, 1 if a check failed (with --require also if one was skipped), and 3 if there
is no GPU, so that nothing was run.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import children, predictions, report, wheels
from .card import missing_card
from .children import ROOT

STAGES = {
    "kernels": "every body of the ops against the reference, and the CUDA kernels under compute-sanitizer",
    "graphs": "captured rollouts, ratios and host syncs of tiny networks, failed captures",
    "learning": "60 iterations of the packaged pipeline, with captured rollouts",
    "ops": "every op by graph replay: eager, torch.compile, both bodies, a copy",
    "calls": "calls and rollouts of SD3.5-Medium's shape, by weights and compilation",
    "iteration": "whole iterations of SD3.5-Medium's shape, the paper's structure and ours",
    "flux": "calls, memory and an iteration of FLUX.1's shape at 1024 px",
}
"""In the order in which they run."""
MINUTES = 8.5
GRACE = 30.0
"""Seconds after its time limit in which a stage must have ended itself."""
NOT_RUN = 3


def main() -> int:
    """Runs the stages one after another, each in a process of its own; returns the exit status."""
    options = _arguments()
    missing = "" if options.rehearse else missing_card()
    if missing:
        print(f"not run: no GPU: {missing}")
        return NOT_RUN
    if options.wheels is not None:
        print(wheels.install(options.wheels, ROOT / "build" / "gpu-site"), flush=True)
    failed = [name for name in options.stages if _run(name, options)]
    print(f"\n{predictions.write(options.output)}\nfailed: {', '.join(failed) or 'none'}", flush=True)
    return int(bool(failed))


def _arguments() -> argparse.Namespace:
    listed = "; ".join(f"{name}: {what}" for name, what in STAGES.items())
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=f"Check and measure on a GPU. {listed}.")
    today = ROOT / "bench" / "reports" / f"gpu-{time.strftime('%Y-%m-%d')}"
    parser.add_argument("--stages", type=_stages, default=list(STAGES), help="names with commas between; all")
    parser.add_argument("--output", type=Path, default=today, help="folder of the reports, one per stage")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time limit of a stage, %(default)s")
    parser.add_argument("--require", action="store_true", help="a check that is skipped counts as failed")
    parser.add_argument("--wheels", type=Path, help="folder of wheels: packages that are missing come from there")
    parser.add_argument("--rehearse", action="store_true", help="tiny networks, also on a CPU; figures mean nothing")
    return parser.parse_args()


def _stages(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"must be names of {', '.join(STAGES)}, got {name!r}")
    return [name for name in STAGES if name in names]


def _run(name: str, options: argparse.Namespace) -> int:
    """The exit status of one stage; its report is in the output folder, also if it crashed or had to be killed."""
    print(f"\n== {name}: {STAGES[name]}", flush=True)
    flags = [f"--{flag}" for flag in ("require", "rehearse") if getattr(options, flag)]
    arguments = ["--output", options.output.resolve(), "--minutes", str(options.minutes), *flags]
    command = [sys.executable, "-m", "bench.gpu.stage", name, *arguments]
    report.forget(options.output, name)
    ran = children.run(command, 60 * options.minutes + GRACE, shown=True)
    if ran.status not in (0, 1):
        reason = f"ended by signal {-ran.status}" if ran.status < 0 else f"ended with status {ran.status}"
        print(f"FAIL  {name}: {report.add_failure(options.output, name, reason)}", flush=True)
    return ran.status


if __name__ == "__main__":
    sys.exit(main())
