"""The stage `iteration`: whole iterations of SD3.5-Medium's shape, and the stage `flux`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

import tempflow_fast as tff
from tempflow_fast.grpo.attention import without_cudnn_attention
from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.grpo.measure import measure
from tempflow_fast.grpo.memory import Load

from .. import paper
from .calls import PACKAGES
from .plan import Plan
from .results import Check, Figures, Outcome, Session
from .timing import median_seconds, seconds_of
from .work import GIB, PROMPT, Large, described, peak_gib, redness

ITERATION, FLUX_CALL = "iterations", "one call"


def checks(plan: Plan, session: Session) -> list[Check]:
    """The paper's structure eager; ours eager, compiled, merged, merged and compiled."""
    large = Large(plan, plan.medium, autoencoder=True)
    found = [
        _estimate_check(large, plan.iteration),
        _ours_check(large, plan.iteration, "merged", False),
        _paper_check(large, plan.iteration),
    ]
    if plan.compiled:
        found.append(_ours_check(large, plan.iteration, "merged", True))
    found += [
        _ours_check(large, plan.fewer, "merged", plan.compiled, ", fewer steps and tails of two"),
        _ours_check(large, plan.iteration, "as trained", False),
    ]
    if plan.compiled:
        found.append(_ours_check(large, plan.iteration, "as trained", True))
    return found


def flux_checks(plan: Plan, session: Session) -> list[Check]:
    """Calls, the memory of a row, and an iteration of FLUX.1's shape."""
    large = Large(plan, plan.flux, autoencoder=True)
    found = [
        _estimate_check(large, plan.flux_iteration),
        *(_flux_call_check(large, weights, False) for weights in ("fp32 adapter", "merged")),
        _training_row_check(large),
        _ours_check(large, plan.flux_iteration, "merged", False),
        _paper_check(large, plan.flux_iteration),
    ]
    if plan.compiled:
        found += [_flux_call_check(large, "merged", True), _ours_check(large, plan.flux_iteration, "merged", True)]
    return found


def _estimate_check(large: Large, config: tff.GRPOConfig) -> Check:
    def run() -> Outcome:
        """As `--dry-run` says before anything runs."""
        memory, load = measure(large.policy, config), Load.of(Geometry(config, 1), 1)
        return Outcome(memory.page(load), [{"iteration": "estimate", "peak GiB": memory.total(load) / GIB}])

    return Check("estimated memory", run, 30, ITERATION, PACKAGES)


def _ours_check(large: Large, config: tff.GRPOConfig, weights: str, compiled: bool, more: str = "") -> Check:
    name = f"ours, {weights}{', compiled' if compiled else ''}{more}"
    config = replace(config, rollout_weights=weights)

    def run() -> Outcome:
        optimizer = torch.optim.AdamW(large.policy.parameters(), lr=1e-5, fused=large.device.type == "cuda")

        def iterate(settings: tff.GRPOConfig, seed: int) -> dict[str, Any]:
            return tff.grpo_step(large.policy, [PROMPT], redness, optimizer, settings, seed)

        with large.computing(None, compiled):
            # Calls of one row and of several, so that compilers and libraries are ready.
            iterate(short(config), 0)
            return _timed(large, config, name, lambda: iterate(config, 1))

    return Check(name, run, 60 if compiled else 30, ITERATION, PACKAGES)


def _paper_check(large: Large, config: tff.GRPOConfig) -> Check:
    name, rows = "the paper's structure", config.micro_batch or config.num_branches

    def run() -> Outcome:
        optimizer = torch.optim.AdamW(large.policy.parameters(), lr=1e-5, fused=large.device.type == "cuda")

        def iterate(settings: tff.GRPOConfig) -> dict[str, float]:
            return paper.iteration(large.policy, [PROMPT], optimizer, settings, 1, rows)

        with large.computing(None, compiled=False):
            iterate(short(config))
            return _timed(large, config, name, lambda: iterate(config))

    return Check(name, run, 50, ITERATION, PACKAGES)


def short(config: tff.GRPOConfig) -> tff.GRPOConfig:
    """The settings of the iteration before the timed one."""
    return replace(config, num_steps=3, num_seeds=1, num_branches=2, branch_steps=None, tail_steps=None)


def _timed(large: Large, config: tff.GRPOConfig, name: str, call: Callable[[], Mapping[str, Any]]) -> Outcome:
    """The seconds of one iteration, those of its stages, and its peak of memory."""
    found: dict[str, Any] = {}

    def timed() -> None:
        found["seconds"] = seconds_of(lambda: found.update(call()), large.device)

    peak = peak_gib(large.device, timed)
    for name_of_part in ("loss", "grad_norm"):
        value = float(found[name_of_part])
        assert math.isfinite(value), f"{name_of_part} is {value}: nothing was learnt"
    row: Figures = {"iteration": name, "seconds": found["seconds"]}
    row |= {stage: float(found[f"seconds_{stage}"]) for stage in ("rollout", "decode", "train")}
    return Outcome(f"{large.described}; {described(config)}", [row | {"peak GiB": peak}])


def _flux_call_check(large: Large, weights: str, compiled: bool) -> Check:
    column = "compiled" if compiled else "eager"

    def run() -> Outcome:
        rows: list[Figures] = []
        with large.computing(weights, compiled):
            for num_rows in large.plan.flux_rows:
                call = large.call(num_rows)
                peak = peak_gib(large.device, call)
                seconds = median_seconds(call, large.device, large.plan.budget, warm_up=1)
                row: Figures = {"weights": weights, "rows": str(num_rows), f"{column} ms": seconds * 1e3}
                rows.append(row | {f"{column} peak GiB": peak})
        return Outcome(large.described, rows)

    return Check(f"calls, {weights}, {column}", run, 60 if compiled else 20, FLUX_CALL, PACKAGES)


def _training_row_check(large: Large) -> Check:
    """What a row adds to a training call with checkpoints, from one and two rows, and what more rows would take."""

    def run() -> Outcome:
        large.policy.enable_gradient_checkpointing()
        peaks = []
        for num_rows in (1, 2):
            call = large.call(num_rows)

            def step(call: Callable[[], object] = call) -> None:
                velocity, _ = call()
                torch.autograd.grad(velocity.sum(), list(large.policy.parameters()), allow_unused=True)

            with large.computing(None, compiled=False), without_cudnn_attention():
                peaks.append(peak_gib(large.device, step))
        large.policy.network.disable_gradient_checkpointing()
        per_row = peaks[1] - peaks[0]
        more: list[Figures] = [
            {"training call": f"{num_rows} rows{'' if num_rows < 3 else ', extrapolated'}", "peak GiB": peak}
            for num_rows, peak in ((1, peaks[0]), (2, peaks[1]), (3, peaks[1] + per_row), (6, peaks[1] + 4 * per_row))
        ]
        return Outcome(f"{per_row:.2f} GiB a row", more)

    return Check("memory of a training call", run, 20, packages=PACKAGES)
