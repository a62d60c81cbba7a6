"""Run `python -m bench.gpu [--output DIR]` in the repository's root."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import report
from .build import ROOT, build
from .card import facts, missing_card
from .results import Session


def main() -> int:
    """Builds, checks, measures and reports; returns 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Check and measure everything on a GPU.")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "reports", help="where the report goes")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit; what does not fit is skipped")
    options = parser.parse_args()
    missing = missing_card()
    if missing:
        print(missing)
        return 0
    session, device = Session(options.minutes), torch.device("cuda", torch.cuda.current_device())
    known = facts(device)

    def finish() -> int:
        print(f"report: {report.write(options.output, known, session.results)}", flush=True)
        return 0 if session.passed else 1

    session.end_in_time(finish)
    session.attempt("build", lambda: build(ROOT / "build" / "gpu", min(180.0, session.seconds_left)))
    try:
        import tempflow_fast

        from . import stages

        known |= tempflow_fast.info()
        stages.run(session, stages.on_card(device))
    finally:  # also after Ctrl-C, to keep what was measured until then
        status = finish()
    return status


if __name__ == "__main__":
    sys.exit(main())
