"""Stage name -> its checks, the most valuable first."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable

from . import calls, checks, iteration, kernels, models
from .children import run
from .learning import shapes_learns
from .op_figures import BODIES, CANDIDATES
from .plan import Plan
from .results import Check, Figures, Outcome, Session, Skip

PACKAGES = calls.PACKAGES


def graphs(plan: Plan, session: Session) -> list[Check]:
    """Tiny networks, a failed capture, and learning on the device."""
    tiny = [check for shape in plan.tiny for check in _tiny_network(plan, shape)]
    failed = Check(
        "a failed capture leaves nothing",
        lambda: checks.failed_capture_leaves_nothing(plan.device, plan.capturer()),
        needs=5,
    )
    learns = Check(
        "shapes learns", lambda: shapes_learns(plan, session), needs=60, packages=("diffusers", "tyro", "matplotlib")
    )
    return [failed, *tiny, learns]


def _tiny_network(plan: Plan, shape: models.Shape) -> list[Check]:
    """Graphs, ratio, repeatability and host syncs on a tiny network of one kind."""
    scale, kind = shape.guidance_scale, shape.kind

    def check(name: str, function: Callable[..., Outcome], needs: float = 10.0, captures: bool = True) -> Check:
        def attempt() -> Outcome:
            capturer = (plan.capturer(),) if captures else ()
            return function(models.random_policy(shape, plan.device, plan.dtype), scale, *capturer)

        return Check(f"{name}, {kind}", attempt, needs, packages=PACKAGES)

    found = [
        check("graphs equal eager", checks.graphs_equal_eager),
        check("graphs equal eager while rewards wait", checks.graphs_equal_eager_while_rewards_wait),
        *(check(name, function, captures=False) for name, function in checks.ITERATION_CHECKS.items()),
    ]
    if plan.compiled:
        found.append(check("compiled graphs equal compiled", checks.compiled_graphs_equal_compiled, needs=60))
    return found


def ops(plan: Plan, session: Session) -> list[Check]:
    """Every candidate at every size, after a quick comparison of the bodies, without which no figure counts."""
    candidates = [each for each in CANDIDATES if plan.compiled or each != "compile"]
    timed = [
        Check(
            f"{candidate}, {num_rows} x {numel}",
            lambda candidate=candidate, size=(num_rows, numel): _op_times(plan, session, candidate, *size),
            needs=20,
            table="ops",
        )
        for num_rows, numel in plan.op_sizes
        for candidate in candidates
    ]
    return [*kernels.parities(plan, session, quick=True), *timed, Check("ncu", lambda: _ncu(plan, session), needs=60)]


def _op_times(plan: Plan, session: Session, candidate: str, num_rows: int, numel: int) -> Outcome:
    """One candidate at one size, in a process of its own, since a process has one body."""
    wrong = {result.name for result in session.results if result.status == "FAIL"}
    if candidate in BODIES and f"parity, {candidate}" in wrong:
        raise Skip("no figures: this body differs from the reference")
    options = {"rows": num_rows, "numel": numel, "rotated-bytes": plan.rotated_bytes, "budget": plan.budget / 5}
    flags = [f"--{name}={value}" for name, value in (options | {"device": plan.device.type}).items()]
    command = [sys.executable, "-m", "bench.gpu.op_figures", candidate, *flags]
    body = {"TEMPFLOW_FAST_BODY": candidate} if candidate in BODIES else {}
    seconds = min(150.0, session.seconds_left)
    ran = run(command, seconds, body)
    rows: list[Figures] = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    problems = [f"{row['op']} {row['dtype']}: {row.pop('problem')}" for row in rows if "problem" in row]
    if not ran.in_time:
        problems.append(f"not done after {seconds:.0f} s, the rows after these are missing")
    elif ran.status and "there is no" in ran.last_line:
        raise Skip(ran.last_line)
    elif ran.status:
        problems.append(ran.last_line)
    return Outcome(f"{len(rows)} rows", rows, problem="; ".join(problems)[:500])


def _ncu(plan: Plan, session: Session) -> Outcome:
    """What the profiler says about two kernels: time, and how busy memory and multiprocessors are."""
    ncu = shutil.which("ncu")
    if plan.device.type != "cuda" or ncu is None:
        raise Skip("no ncu here" if plan.device.type == "cuda" else "it measures CUDA kernels")
    num_rows, numel = plan.op_sizes[0]
    log = plan.output / "ncu.csv"
    program = [sys.executable, "-m", "bench.gpu.op_figures", "native", "--rows", str(num_rows), "--numel", str(numel)]
    options = ["--csv", "--section", "SpeedOfLight", "--kernel-name", "regex:branch_step|loss_gradient"]
    command = [ncu, *options, "--launch-count", "4", "--log-file", str(log), "--kill", "yes", *program]
    ran = run(command, min(100.0, session.seconds_left), {"TEMPFLOW_FAST_BODY": "native"})
    if not log.exists() or not ran.in_time:
        raise Skip("not done in time" if not ran.in_time else ran.last_line)
    lines = [line for line in log.read_text().splitlines() if line.startswith('"')]
    if not lines:
        raise Skip(f"ncu wrote no table: {log.read_text().strip().splitlines()[-1:]}")
    return Outcome(f"{len(lines) - 1} lines in {os.path.basename(log)}")


STAGES: dict[str, Callable[[Plan, Session], list[Check]]] = {
    "kernels": kernels.checks,
    "graphs": graphs,
    "ops": ops,
    "calls": calls.checks,
    "iteration": iteration.checks,
    "flux": iteration.flux_checks,
}
