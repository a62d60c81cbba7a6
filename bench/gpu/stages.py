"""Stage name -> its checks, the most valuable first."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable

from . import attention, calls, checks, iteration, kernels, models
from .children import run
from .learning import shapes_learns
from .op_figures import BODIES, CANDIDATES
from .plan import Plan
from .results import Check, Figures, Outcome, Session, Skip

PACKAGES = calls.PACKAGES
PROFILED = ("branch_step_kernel", "loss_gradient_kernel")
PROFILE = ("Duration", "DRAM Throughput", "Compute (SM) Throughput")


def graphs(plan: Plan, session: Session) -> list[Check]:
    """Tiny networks, and a failed capture."""
    tiny = [check for shape in plan.tiny for check in _tiny_network(plan, shape)]
    failed = Check(
        "a failed capture leaves nothing",
        lambda: checks.failed_capture_leaves_nothing(plan.device, plan.capturer()),
        needs=5,
    )
    return [failed, attention.check(plan, session), *tiny]


def learning(plan: Plan, session: Session) -> list[Check]:
    """The packaged pipeline."""
    packages = ("diffusers", "tyro", "matplotlib")
    return [Check("shapes learns", lambda: shapes_learns(plan, session), needs=90, packages=packages)]


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

    def timed(candidate: str) -> list[Check]:
        return [
            Check(
                f"{candidate}, {num_rows} x {numel}",
                lambda size=(num_rows, numel): _op_times(plan, session, candidate, *size),
                needs=20,
                table="ops",
            )
            for num_rows, numel in plan.op_sizes
        ]

    found = kernels.parities(plan, session, quick=True)
    for candidate in CANDIDATES:
        found += timed(candidate) if candidate != "compile" else []
    found += [_profile_check(plan, session, name) for name in PROFILED]
    return found + (timed("compile") if plan.compiled else [])  # last, since nobody knows how long compiling takes


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


def _profile_check(plan: Plan, session: Session, kernel: str) -> Check:
    """What ncu says about the first launch of a kernel: time, and how busy memory and multiprocessors are."""

    def profile() -> Outcome:
        ncu = shutil.which("ncu")
        if plan.device.type != "cuda" or ncu is None:
            raise Skip("no ncu here" if plan.device.type == "cuda" else "it measures CUDA kernels")
        num_rows, numel = plan.op_sizes[0]
        log = plan.output / f"ncu-{kernel}.csv"
        sizes = ("--rows", str(num_rows), "--numel", str(numel), "--budget", "0.01")
        program = (sys.executable, "-m", "bench.gpu.op_figures", "native", *sizes)
        section = ("--section", "SpeedOfLight", "--clock-control", "none")
        first = ("--kernel-name", f"regex:{kernel}", "--launch-count", "1", "--kill", "yes")
        command = (ncu, "--csv", *section, *first, "--log-file", log, *program)
        ran = run(command, min(90.0, session.seconds_left), {"TEMPFLOW_FAST_BODY": "native"})
        figures = profiled(log.read_text()) if log.exists() else {}
        if not figures:
            raise Skip(f"ncu gave no figures: {ran.last_line if ran.in_time else 'not done in time'}")
        return Outcome("", [{"kernel": kernel, **figures}])

    return Check(f"ncu, {kernel}", profile, needs=45, table="ncu")


def profiled(log: str) -> Figures:
    """The wanted figures in ncu's CSV, whose first lines are messages."""
    lines = [line for line in log.splitlines() if line.startswith('"')]
    found: Figures = {}
    for row in csv.DictReader(lines):
        if row.get("Metric Name") in PROFILE:
            value = float(row["Metric Value"].replace(",", ""))
            found[f"{row['Metric Name']}, {row['Metric Unit']}"] = value
    return found


STAGES: dict[str, Callable[[Plan, Session], list[Check]]] = {
    "kernels": kernels.checks,
    "graphs": graphs,
    "learning": learning,
    "ops": ops,
    "calls": calls.checks,
    "iteration": iteration.checks,
    "flux": iteration.flux_checks,
}
