"""All checks and measurements, the most valuable first."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tempflow_fast import GRPOConfig
from tempflow_fast.graphs.capture import Capturer
from tempflow_fast.policies import DiffusersPolicy

from . import checks, iteration, models, op_figures
from .results import Outcome, Session, Skip

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What to run: the published shapes on a card, tiny ones in a rehearsal."""

    device: torch.device
    dtype: torch.dtype
    capturer: Callable[[], Capturer]
    tiny: tuple[models.Shape, ...]
    measured: dict[str, tuple[models.Shape, GRPOConfig, float, float]]
    """Name -> network, settings, GiB that it needs, approximate seconds."""
    rollouts: dict[str, tuple[models.Shape, GRPOConfig, float]]
    """Name -> network, settings, approximate seconds."""
    op_sizes: tuple[tuple[int, int], ...]
    """(R, D)"""
    copy_bytes: int
    compiled: bool
    quick_parity: bool


def on_card(device: torch.device) -> Plan:
    """The plan for a card: the published shapes."""
    from tempflow_fast.graphs.capture import CudaCapturer

    def config(**settings: Any) -> GRPOConfig:
        usual = {"guidance_scale": 4.5, "num_updates": 1, "max_batch": 16, "micro_batch": 4, "num_seeds": 2}
        return GRPOConfig(**{**usual, **settings})

    return Plan(
        device=device,
        dtype=torch.bfloat16,
        capturer=lambda: CudaCapturer(device),
        tiny=(models.TINY_SD3, models.TINY_FLUX),
        rollouts={
            "rollout, launch-bound network": (models.SD3_SMALL, config(num_steps=6, num_branches=4, num_seeds=1), 60),
            "rollout, SD3.5-Medium's shape": (models.SD35_MEDIUM, config(num_steps=4, num_branches=4), 90),
        },
        measured={
            "iteration, SD3.5-Medium's shape": (models.SD35_MEDIUM, config(), 40, 120),
            "iteration, FLUX.1's shape": (
                models.FLUX,
                config(num_steps=4, num_branches=4, num_seeds=1, guidance_scale=3.5, max_batch=8, micro_batch=1),
                70,
                90,
            ),
        },
        op_sizes=((4, 65_536), (64, 65_536), (16, 262_144)),
        copy_bytes=GIB,
        compiled=True,
        quick_parity=False,
    )


def rehearsal(capturer: Callable[[], Capturer]) -> Plan:
    """The same on tiny networks on the CPU, where the figures mean nothing."""
    small = GRPOConfig(num_steps=3, num_branches=2, num_seeds=1, guidance_scale=4.5, num_updates=1, max_batch=2)
    return Plan(
        device=torch.device("cpu"),
        dtype=torch.float32,
        capturer=capturer,
        tiny=(models.TINY_SD3, models.TINY_FLUX),
        rollouts={"rollout, tiny network": (models.TINY_SD3, small, 0)},
        measured={"iteration, tiny network": (models.TINY_SD3, small, 0, 0)},
        op_sizes=((2, 256),),
        copy_bytes=2**20,
        compiled=False,
        quick_parity=True,
    )


def run(session: Session, plan: Plan) -> None:
    """Runs every check and measurement of the plan. Ops are not timed if a body failed its comparison."""
    right = [_parity(session, plan, body) for body in ("native", "triton", "reference")]
    for shape in plan.tiny:
        _check_network(session, plan, shape)
    session.attempt("memory checker", lambda: _memory_checker(plan, session.seconds_left), needs=120)
    for num_rows, numel in plan.op_sizes:
        name = f"ops, R = {num_rows}, D = {numel}"
        if not all(right):
            session.attempt(name, _refused)
        else:
            call = _bound(op_figures.measure, plan.device, num_rows, numel, plan.copy_bytes, plan.compiled)
            session.attempt(name, call, needs=30)
    for name, (shape, config, seconds) in plan.rollouts.items():
        session.attempt(name, _bound(_rollout, plan, shape, config), seconds)
        _release()
    for name, (shape, config, gib, seconds) in plan.measured.items():
        session.attempt(name, _bound(_iteration, plan, shape, config, gib), seconds)
        _release()


def _bound(function: Callable[..., Outcome], *arguments: object) -> Callable[[], Outcome]:
    return lambda: function(*arguments)


def _refused() -> Outcome:
    raise Skip("no figures: a body differs from the reference")


def _parity(session: Session, plan: Plan, body: str) -> bool:
    """Whether `body` agrees with the reference, or is not available."""
    result = session.attempt(f"parity, {body}", lambda: _parity_of(plan, body, session.seconds_left), needs=30)
    return result.status != "FAIL"


def _parity_of(plan: Plan, body: str, seconds: float) -> Outcome:
    ran = _python(["bench.gpu.parity", *_parity_options(plan)], {"TEMPFLOW_FAST_BODY": body}, seconds)
    if ran.returncode:
        last = [line for line in ran.stderr.splitlines() if line.strip()][-1:]
        if last and ("ImportError" in last[0] or "ModuleNotFoundError" in last[0]):
            raise Skip(last[0])
        raise RuntimeError(last[0] if last else f"status {ran.returncode}")
    said = json.loads(ran.stdout.splitlines()[-1])
    served = sorted(op for op, live in said["bodies"].items() if live == body)
    if not served:
        raise Skip(f"no op has a {body} body on {plan.device.type} here")
    assert not said["problems"], f"{len(said['problems'])} cases differ, the first: {said['problems'][0]}"
    return Outcome(f"{len(served)} of {len(said['bodies'])} ops")


def _parity_options(plan: Plan) -> list[str]:
    return ["--device", plan.device.type, *(["--quick"] if plan.quick_parity else [])]


def _check_network(session: Session, plan: Plan, shape: models.Shape) -> None:
    """Graphs, ratio, repeatability and host syncs on a tiny network of one kind."""
    scale, kind = shape.guidance_scale, shape.kind

    def policy() -> DiffusersPolicy:
        return models.random_policy(shape, plan.device, plan.dtype)

    session.attempt(
        f"graphs equal eager, {kind}", lambda: checks.graphs_equal_eager(policy(), scale, plan.capturer()), needs=10
    )
    for name, check in checks.ITERATION_CHECKS.items():
        session.attempt(f"{name}, {kind}", _bound(lambda check: check(policy(), scale), check), needs=10)
    if plan.compiled:
        session.attempt(
            f"compiled graphs equal compiled, {kind}",
            lambda: checks.compiled_graphs_equal_compiled(policy(), scale, plan.capturer()),
            needs=60,
        )


def _memory_checker(plan: Plan, seconds: float) -> Outcome:
    """Runs the ops under compute-sanitizer, with separate allocations, so that it sees every access outside of one."""
    if plan.device.type != "cuda" or shutil.which("compute-sanitizer") is None:
        raise Skip("no compute-sanitizer here" if plan.device.type == "cuda" else "it checks CUDA kernels")
    checker = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    options = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        command = ["bench.gpu.parity", "--device", "cuda", "--quick"]
        ran = _python(command, options, min(110.0, seconds), before=checker)
    except subprocess.TimeoutExpired:
        raise Skip("it was not done in time") from None
    errors = [line for line in ran.stdout.splitlines() if line.startswith("=========")]
    assert ran.returncode != 9, f"it found errors: {errors[1] if len(errors) > 1 else errors}"
    if ran.returncode:
        raise Skip(f"it did not run: {(errors or ran.stderr.splitlines() or ['no output'])[-1]}")
    return Outcome(errors[-1].strip("= ") if errors else "")


def _rollout(plan: Plan, shape: models.Shape, config: GRPOConfig) -> Outcome:
    policy = models.random_policy(shape, plan.device, plan.dtype)
    return iteration.rollout_figures(policy, config, shape.guidance_scale, plan.capturer(), plan.compiled)


def _iteration(plan: Plan, shape: models.Shape, config: GRPOConfig, gib: float) -> Outcome:
    if plan.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(plan.device)
        if free < gib * GIB:
            raise Skip(f"it needs about {gib} GiB, {free / GIB:.0f} GiB are free")
    policy = models.random_policy(shape, plan.device, plan.dtype)
    return iteration.iteration_figures(policy, config, max_rows=config.micro_batch or config.num_branches)


def _release() -> None:
    """Frees the memory of the last network."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _python(
    module: list[str], environment: dict[str, str], seconds: float, before: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*(before or []), sys.executable, "-m", *module]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=max(seconds, 1))
