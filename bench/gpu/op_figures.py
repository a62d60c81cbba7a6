"""Every op against eager PyTorch, torch.compile and the copy bandwidth of the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tempflow_fast import linear_sigmas, ops, step_table

from .. import baselines
from .results import Figures, Outcome
from .timing import median_seconds

TABLE, STEP, K, SCALE, CLIP_RANGE = step_table(linear_sigmas(10, 3.0)), 3, 6, 4.5, 1e-4


@dataclass(frozen=True)
class Case:
    """An op, what it replaces, and the least number of bytes that it has to move."""

    op: str
    ours: Callable[[], object]
    eager: Callable[..., object]
    arguments: tuple[object, ...]
    num_bytes: int
    differentiated: bool = False
    """Whether what it replaces is a loss that is differentiated with respect to the arguments."""

    def replaced(self, function: Callable[..., object]) -> object:
        """Calls `function`, eager or compiled, as the op is called."""
        result = function(*self.arguments)
        return torch.autograd.grad(result, self.arguments) if self.differentiated else result


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes that a copy on the device reads and writes per second."""
    source = torch.empty(num_bytes // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device)


def measure(device: torch.device, num_rows: int, numel: int, copy_bytes: int, compiled: bool) -> Outcome:
    """Times of all ops on [num_rows, numel] latents with K branches, in fp32 and bf16."""
    bandwidth = copy_bandwidth(device, copy_bytes)
    rows = [
        _figures(case, dtype, bandwidth, device, compiled)
        for dtype in (torch.float32, torch.bfloat16)
        for case in cases(device, dtype, num_rows, numel)
    ]
    return Outcome(f"R = {num_rows}, D = {numel}, K = {K}; a copy moves {bandwidth / 1e9:.0f} GB/s", rows)


def _figures(case: Case, dtype: torch.dtype, bandwidth: float, device: torch.device, compiled: bool) -> Figures:
    ours, eager = (median_seconds(call, device) for call in (case.ours, lambda: case.replaced(case.eager)))
    row: Figures = {"op": case.op, "dtype": str(dtype).removeprefix("torch."), "ours us": ours * 1e6}
    row |= {"eager us": eager * 1e6, "eager / ours": eager / ours}
    if compiled:
        function = torch.compile(case.eager)
        seconds = median_seconds(lambda: case.replaced(function), device)
        row |= {"compile us": seconds * 1e6, "compile / ours": seconds / ours}
    return row | {"GB/s": case.num_bytes / ours / 1e9, "of the copy": case.num_bytes / ours / bandwidth}


def cases(device: torch.device, dtype: torch.dtype, num_rows: int, numel: int) -> Iterator[Case]:
    """All ops on random data, with guidance for those that take it."""

    def rows() -> Tensor:
        return torch.randn(num_rows, numel, device=device).to(dtype)

    x, v, u, ids = rows(), rows(), rows(), torch.arange(num_rows, device=device)
    seed, step = torch.zeros((), dtype=torch.int64, device=device), baselines.Step(*TABLE.coefficients()[STEP].tolist())
    guided = {"velocity_uncond": u, "guidance_scale": SCALE}
    size = x.nbytes
    yield Case("guided_velocity", lambda: ops.guided_velocity(v, u, SCALE), baselines.guided, (v, u, SCALE), 3 * size)
    yield Case(
        "euler_step",
        lambda: ops.euler_step(x, v, TABLE, STEP, **guided),
        baselines.euler_step,
        (x, v, u, SCALE, step),
        4 * size,
    )
    yield Case(
        "branch_step",
        lambda: ops.branch_step(x, v, TABLE, STEP, K, seed, ids, **guided),
        baselines.guided_branch_step,
        (x, v, u, SCALE, step, K),
        (4 + K) * size,
    )
    yield Case(
        "initial_noise",
        lambda: ops.initial_noise((numel,), seed, ids),
        lambda: torch.randn(num_rows, numel, device=device),
        (),
        num_rows * numel * 4,
    )
    _, branches, _ = ops.branch_step(x, v, TABLE, STEP, K, seed, ids, **guided)
    steps, child = torch.full((num_rows,), STEP, device=device), branches[:, 0].contiguous()
    yield Case(
        "log_prob", lambda: ops.log_prob(child, x, v, TABLE, steps), baselines.log_prob, (child, x, v, step), 3 * size
    )
    trained = v.clone().requires_grad_()
    yield Case(
        "log_prob, both passes",
        lambda: torch.autograd.grad(ops.log_prob(child, x, trained, TABLE, steps).sum(), trained),
        lambda velocity: baselines.log_prob(child, x, velocity, step).sum(),
        (trained,),
        (3 + 4) * size,
        differentiated=True,
    )
    changed = [(t.float() + 0.01 * torch.randn_like(t, dtype=torch.float32)).to(dtype) for t in (v, u)]
    yield _loss_case("policy_loss, both passes", changed, x, branches, ops.guided_velocity(v, u, SCALE))
    yield _loss_case("the same, unchanged policy", [v, u], x, branches, ops.guided_velocity(v, u, SCALE))


def _loss_case(name: str, velocities: list[Tensor], x: Tensor, branches: Tensor, old: Tensor) -> Case:
    """policy_loss and its gradients for a policy with the given conditional and unconditional velocities."""
    leaves = [velocity.clone().requires_grad_() for velocity in velocities]
    advantages = torch.randn(branches.shape[:2], device=x.device)
    steps = torch.full((len(x),), STEP, device=x.device)
    step = baselines.Step(*TABLE.coefficients()[STEP].tolist())
    inputs = baselines.LossInputs(x, branches, old, advantages, step, CLIP_RANGE)

    def ours() -> object:
        options = {"clip_range": CLIP_RANGE, "velocity_uncond": leaves[1], "guidance_scale": SCALE}
        result = ops.policy_loss(leaves[0], x, branches, old, advantages, TABLE, steps, **options)
        return torch.autograd.grad(result.loss, leaves)

    def eager(cond: Tensor, uncond: Tensor) -> Tensor:
        return baselines.tuned_policy_loss(baselines.guided(cond, uncond, SCALE), inputs)

    return Case(name, ours, eager, tuple(leaves), (6 + K) * x.nbytes, differentiated=True)
