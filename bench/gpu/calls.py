"""The stage `calls`: network calls and whole rollouts of SD3.5-Medium's shape."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tempflow_fast.graphs.replay import CudaGraphs

from .plan import Plan
from .results import Check, Figures, Outcome, Session
from .timing import median_seconds, seconds_of, wait
from .work import Large, described

PACKAGES = ("diffusers", "peft")
TOP = 15
CALL, ROLLOUT = "one call, ms", "rollouts"


def checks(plan: Plan, session: Session) -> list[Check]:
    """All of the stage; the longest come last."""
    large, small = Large(plan, plan.medium), Large(plan, plan.small)
    weights = ("fp32 adapter", "16-bit adapter", "merged", "no adapter")
    found = [_call_check(large, name, False) for name in weights]
    found += [_captured_check(large, "fp32 adapter", False), _top_check(large, "fp32 adapter", False)]
    found.append(_launch_bound_check(small))
    if plan.compiled:
        found += [_call_check(large, name, True) for name in ("fp32 adapter", "merged")]
        found += [_captured_check(large, "merged", True), _top_check(large, "merged", True)]
    found += [_rollout_check(large, name, False) for name in ("fp32 adapter", "merged")]
    if plan.compiled:
        found += [_rollout_check(large, "merged", True), _rollout_check(large, "merged", True, captured=True)]
    return found


def _named(large: Large, weights: str, compiled: bool) -> str:
    return f"{weights}, {'compiled' if compiled else 'eager'}"


def _call_check(large: Large, weights: str, compiled: bool) -> Check:
    def run() -> Outcome:
        with large.computing(weights, compiled):
            rows = [
                _row(
                    weights,
                    num_rows,
                    compiled,
                    median_seconds(large.call(num_rows), large.device, large.plan.budget, warm_up=2),
                )
                for num_rows in large.plan.call_rows
            ]
        return Outcome(large.described, rows)

    return Check(f"calls, {_named(large, weights, compiled)}", run, 40 if compiled else 20, CALL, PACKAGES)


def _row(weights: str, num_rows: int, compiled: bool, seconds: float, captured: bool = False) -> Figures:
    column = f"{'compiled' if compiled else 'eager'}{', captured' if captured else ''}"
    return {"weights": weights, "rows": str(num_rows), column: seconds * 1e3}


def _captured_check(large: Large, weights: str, compiled: bool) -> Check:
    """Replays of the smallest and the largest call, which show what launching kernels costs."""

    def run() -> Outcome:
        rows = []
        with large.computing(weights, compiled):
            for num_rows in (large.plan.call_rows[0], large.plan.call_rows[-1]):
                call, capturer = large.call(num_rows), large.plan.capturer()
                for _ in range(2):
                    capturer.warm_up(call)
                replay, kept = capturer.capture(call)
                rows.append(
                    _row(weights, num_rows, compiled, median_seconds(replay, large.device, large.plan.budget), True)
                )
                del kept
        return Outcome(large.described, rows)

    return Check(f"captured calls, {_named(large, weights, compiled)}", run, 20, CALL, PACKAGES)


def _top_check(large: Large, weights: str, compiled: bool) -> Check:
    def run() -> Outcome:
        with large.computing(weights, compiled):
            return top_kernels(large.call(large.plan.call_rows[-1]), large.device)

    return Check(f"top {TOP} kernels, {_named(large, weights, compiled)}", run, 15, packages=PACKAGES)


def top_kernels(call: Callable[[], object], device: torch.device) -> Outcome:
    """Where the time of a call goes, by torch's profiler: on a CPU by operator."""
    from torch.profiler import ProfilerActivity, profile

    call()
    wait(device)
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        call()
        wait(device)
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, field))
    total = sum(getattr(event, field) for event in events) or 1.0
    rows: list[Figures] = [
        {
            "kernel": event.key[:100],
            "calls": event.count,
            "ms": getattr(event, field) / 1e3,
            "share": getattr(event, field) / total,
        }
        for event in events[:TOP]
    ]
    count = sum(event.count for event in events if getattr(event, field))  # without the host's launches
    return Outcome(f"{total / 1e3:.1f} ms in {count} kernels", rows)


def _rollout_check(large: Large, weights: str, compiled: bool, captured: bool = False) -> Check:
    """A rollout after the calls above, so that only graphs have something left to prepare."""

    def run() -> Outcome:
        config = large.plan.rollout
        graphs = CudaGraphs(large.plan.capturer()) if captured else None
        with large.computing(weights, compiled):
            call = large.rollout(config, graphs)
            for _ in range(2 if captured else int(compiled)):
                call()
            seconds = seconds_of(call, large.device)
        name = f"{_named(large, weights, compiled)}{', captured' if captured else ''}"
        return Outcome(f"{large.described}; {described(config)}", [{"rollout": name, "seconds": seconds}])

    name = f"rollout, {_named(large, weights, compiled)}{', captured' if captured else ''}"
    return Check(name, run, 45 if captured else 20, ROLLOUT, PACKAGES)


def _launch_bound_check(small: Large) -> Check:
    """What graphs are for: a network whose kernels are shorter than their launch."""

    def run() -> Outcome:
        rows: list[Figures] = []
        config = small.plan.rollout
        with small.computing("fp32 adapter", False):
            for name, graphs in (("eager", None), ("captured", CudaGraphs(small.plan.capturer()))):
                call = small.rollout(config, graphs)
                for _ in range(2):
                    call()
                rows.append({"rollout": f"small network, {name}", "seconds": seconds_of(call, small.device)})
        return Outcome(small.described, rows)

    return Check("rollout, launch-bound network", run, 30, ROLLOUT, PACKAGES)
