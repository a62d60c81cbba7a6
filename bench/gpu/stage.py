"""Runs one stage in a process of its own: `python -m bench.gpu.stage NAME --output DIR`; `__main__.py` calls it.

A stage that crashes, hangs or leaves the device in a bad state costs nothing but itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from . import report
from .build import build, built_folder
from .card import facts
from .children import ROOT
from .results import Check, Outcome, Result, Session, Skip

BUILD_SECONDS = 180.0


def main() -> int:
    """Builds, checks, measures and reports; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.stage")
    parser.add_argument("stage")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--require", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    known = facts(device) | ({"card": report.REHEARSAL} if options.rehearse else {})

    def save(results: list[Result]) -> None:
        report.write(options.output, options.stage, known, results)

    session = Session(options.minutes, save)
    session.end_in_time(options.require)

    def built() -> Outcome:
        if given := built_folder():
            return Outcome(f"as it is in {os.path.relpath(given, ROOT)}")
        if not on_gpu:
            raise Skip("a rehearsal uses the package as it is")
        return build(ROOT / "build" / "gpu", min(BUILD_SECONDS, session.seconds_left))

    session.run([Check("build", built), Check("import", lambda: _import(known))])
    if session.results[-1].status == "pass":
        from .plan import on_card, rehearsal
        from .stages import STAGES

        plan = rehearsal(device, options.output) if options.rehearse else on_card(device, options.output)
        session.run(STAGES[options.stage](plan, session))
    print(f"\n{report.shown(session.results)}\nreport: {options.output / options.stage}.md", flush=True)
    return session.status(options.require)


def _import(known: dict[str, str]) -> Outcome:
    """The package can be imported; what it says about its bodies becomes part of the report."""
    import tempflow_fast

    known |= {name: value for name, value in tempflow_fast.info().items() if name not in known}
    return Outcome(os.path.relpath(Path(tempflow_fast.__file__).parent, ROOT))


if __name__ == "__main__":
    sys.exit(main())
