"""The checks of the ops: every body against the reference, and the CUDA kernels under compute-sanitizer."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from . import harness
from .children import ROOT, run
from .plan import Plan
from .results import Check, Outcome, Session, Skip

BODIES = ("native", "triton", "reference")
SANITIZERS = ("memcheck", "racecheck")
FOUND = 9
"""Status of compute-sanitizer if it found something."""


def checks(plan: Plan, session: Session) -> list[Check]:
    """All of the stage."""
    tools = [
        Check(f"CUDA kernels under {tool}", lambda tool=tool: sanitized(plan, session, tool), 20) for tool in SANITIZERS
    ]
    return [
        Check("CUDA kernels without torch", lambda: alone(plan, session), needs=20),
        *tools,
        *parities(plan, session),
        Check("Triton kernels under memcheck", lambda: triton_under_memcheck(plan, session), needs=60),
    ]


def parities(plan: Plan, session: Session, quick: bool = False) -> list[Check]:
    """A comparison of every body with the reference; `quick` leaves out the large sizes."""

    def check(body: str) -> Check:
        return Check(f"parity, {body}", lambda: parity(plan, body, quick or plan.quick, session.seconds_left), needs=60)

    return [check(body) for body in BODIES]


def parity(plan: Plan, body: str, quick: bool, seconds: float) -> Outcome:
    """Compares one body of all ops with the reference, in a process of its own, since the choice is made on import."""
    options = ["--device", plan.device.type, *(["--quick"] if quick else [])]
    ran = run([sys.executable, "-m", "bench.gpu.parity", *options], seconds, {"TEMPFLOW_FAST_BODY": body})
    if not ran.in_time:
        raise TimeoutError(f"not done after {seconds:.0f} s")
    if ran.status:
        if "ImportError" in ran.last_line or "ModuleNotFoundError" in ran.last_line:
            raise Skip(ran.last_line)
        raise RuntimeError(ran.last_line)
    said = json.loads(ran.stdout.splitlines()[-1])
    served = sorted(op for op, live in said["bodies"].items() if live == body)
    if not served:
        raise Skip(f"no op has a {body} body on {plan.device.type} here")
    assert not said["problems"], f"{len(said['problems'])} cases differ, the first: {said['problems'][0]}"
    return Outcome(f"{len(served)} of {len(said['bodies'])} ops")


def alone(plan: Plan, session: Session) -> Outcome:
    """Builds the kernels without torch and compares drawn calls with the reference."""
    return _calls(plan, session, [_built(plan, session)])


def sanitized(plan: Plan, session: Session, tool: str) -> Outcome:
    """The same calls under one tool of compute-sanitizer."""
    program = _built(plan, session)
    checker = _sanitizer()
    log = plan.output / f"{tool}.log"  # its usual place, stdout, carries the results
    command = [checker, "--tool", tool, "--error-exitcode", str(FOUND), "--log-file", log, program]
    try:
        outcome = _calls(plan, session, command)
    except (AssertionError, RuntimeError) as error:
        raise RuntimeError(f"{error}; {_summary(log)}") from None
    return Outcome(f"{outcome.detail}; {_summary(log)}")


def triton_under_memcheck(plan: Plan, session: Session) -> Outcome:
    """The quick parity of Triton's body, every tensor an allocation of its own."""
    _require_card(plan)
    log = plan.output / "memcheck-triton.log"
    before = [_sanitizer(), "--tool", "memcheck", "--error-exitcode", str(FOUND), "--log-file", log]
    command = [*before, sys.executable, "-m", "bench.gpu.parity", "--device", "cuda", "--quick"]
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TEMPFLOW_FAST_BODY": "triton"}
    ran = run(command, min(100.0, session.seconds_left), variables)
    if not ran.in_time:
        raise Skip("not done in time")
    assert ran.status == 0, f"{_summary(log)}; {ran.last_line}"
    return Outcome(_summary(log))


def _calls(plan: Plan, session: Session, command: list[str | Path]) -> Outcome:
    seconds = min(120.0, session.seconds_left)
    ran = run([sys.executable, "-m", "bench.gpu.harness", "--draws", str(plan.draws), *command], seconds)
    if not ran.in_time:
        raise TimeoutError(f"not done after {seconds:.0f} s")
    if ran.status:
        raise RuntimeError(ran.last_line)
    return Outcome(ran.last_line)


def _built(plan: Plan, session: Session) -> Path:
    """The program of the kernels, compiled for this card once."""
    _require_card(plan)
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if nvcc is None:
        raise Skip("no nvcc on PATH (or CUDACXX)")
    program = ROOT / "build" / "gpu" / "harness"
    newest = max(path.stat().st_mtime for path in (harness.SOURCE, *(ROOT / "csrc").rglob("*.*")))
    if not program.exists() or program.stat().st_mtime < newest:
        major, minor = torch.cuda.get_device_capability(plan.device)
        harness.build(nvcc, program, f"sm_{major}{minor}", min(120.0, session.seconds_left))
    return program


def _require_card(plan: Plan) -> None:
    if plan.device.type != "cuda":
        raise Skip("CUDA kernels need a CUDA device")


def _sanitizer() -> str:
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if found is None:
        raise Skip("no compute-sanitizer here")
    return found


def _summary(log: Path) -> str:
    """The last line of a sanitizer's log."""
    lines = [line.strip("= ") for line in log.read_text().splitlines() if line.strip("= ")] if log.exists() else []
    return lines[-1] if lines else "the sanitizer wrote nothing"
