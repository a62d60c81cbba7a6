"""Every op next to its baselines on the same inputs, with the least number of bytes that it has to move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tempflow_fast import linear_sigmas, ops, step_table

from . import baselines

NUM_ROWS, NUM_BRANCHES, STEP, CLIP_RANGE, SCALE = 4, 6, 3, 1e-4, 4.5
TABLE = step_table(linear_sigmas(10, 3.0))
OURS, SCRIPTS, TUNED, COMPILED_SCRIPTS, COMPILED = (
    "ours",
    "eager, as in scripts",
    "eager, tuned",
    "compiled, as in scripts",
    "compiled, tuned",
)
OWN_NOISE, NOISE, COPY = "compiled, its own noise", "noise alone", "copy of as many bytes"
EAGER = (SCRIPTS, TUNED)
COMPILERS = (COMPILED_SCRIPTS, COMPILED, OWN_NOISE)

COMPILES = " " not in torch.__path__[0]
"""Inductor's call of the linker breaks where torch lies in a path with a space; its columns are then left out."""

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """An op and what it replaces."""

    calls: Calls
    num_bytes: int
    """That must move at least: every input read once, every output written once."""
    num_outputs: int
    """Elements that the op writes or, in a loss, branches' elements that it reads."""

    def with_copy(self) -> Calls:
        """All calls, and a copy that moves as many bytes."""
        source = torch.randn(max(self.num_bytes // 8, 1))
        target = torch.empty_like(source)
        return {**self.calls, COPY: lambda: target.copy_(source)}


def compiled(function: Callable, own_noise: bool = False) -> Callable:
    """torch.compile; with eager random numbers unless asked otherwise: inductor's own are slow on a CPU."""

    def call(*arguments: object) -> object:
        with torch._inductor.config.patch(fallback_random=not own_noise):
            return graph(*arguments)

    graph = torch.compile(function, fullgraph=True, dynamic=False)
    return call


def _replaced(scripts: Callable | None, tuned: Callable, call: Callable[[Callable], Callable[[], object]]) -> Calls:
    """The four baselines, or two where scripts and care write the same."""
    functions = {SCRIPTS: scripts, TUNED: tuned} if scripts else {TUNED: tuned}
    if COMPILES:
        functions |= {COMPILED_SCRIPTS: compiled(scripts)} if scripts else {}
        functions |= {COMPILED: compiled(tuned)}
    return {name: call(function) for name, function in functions.items()}


def _rows(dtype: torch.dtype, numel: int, count: int) -> list[Tensor]:
    return [torch.randn(NUM_ROWS, numel).to(dtype) for _ in range(count)]


def _step() -> baselines.Step:
    return baselines.Step(*TABLE.coefficients()[STEP].tolist())


def branch_step(dtype: torch.dtype, numel: int) -> Case:
    """One trunk move and K branches."""
    (x, v), step, ids = _rows(dtype, numel, 2), _step(), torch.arange(NUM_ROWS)
    scripts, tuned = baselines.script_branch_step, baselines.tuned_branch_step
    many = torch.arange(NUM_ROWS * NUM_BRANCHES)
    calls = {OURS: lambda: ops.branch_step(x, v, TABLE, STEP, NUM_BRANCHES, 0, ids)}
    calls |= _replaced(scripts, tuned, lambda f: lambda: f(x, v, step, NUM_BRANCHES))
    calls |= {NOISE: lambda: ops.initial_noise((numel,), 0, many)}
    if COMPILES and dtype == torch.float32 and numel == 65_536:
        own = compiled(tuned, own_noise=True)
        calls |= {OWN_NOISE: lambda: own(x, v, step, NUM_BRANCHES)}
    return Case(calls, (3 + NUM_BRANCHES) * x.nbytes, NUM_BRANCHES * x.numel())


def euler_step(dtype: torch.dtype, numel: int) -> Case:
    """Guidance and one ODE step."""
    (x, v, u), step = _rows(dtype, numel, 3), _step()
    calls = {OURS: lambda: ops.euler_step(x, v, TABLE, STEP, velocity_uncond=u, guidance_scale=SCALE)}
    calls |= _replaced(None, baselines.euler_step, lambda f: lambda: f(x, v, u, SCALE, step))
    return Case(calls, 4 * x.nbytes, x.numel())


def log_prob(dtype: torch.dtype, numel: int) -> Case:
    """The density of a step and its gradient in the velocity."""
    (x, v, child), step, steps = _rows(dtype, numel, 3), _step(), torch.full((NUM_ROWS,), STEP)
    v.requires_grad_()

    def gradient(density: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(density().sum(), v)

    calls = {OURS: gradient(lambda: ops.log_prob(child, x, v, TABLE, steps))}
    calls |= _replaced(None, baselines.log_prob, lambda f: gradient(lambda: f(child, x, v, step)))
    return Case(calls, 7 * x.nbytes, x.numel())


def policy_loss(dtype: torch.dtype, numel: int, changed: bool = True) -> Case:
    """The loss of K branches a row and its gradient; of a policy that has changed, or of the first update's."""
    (x, old), step, steps = _rows(dtype, numel, 2), _step(), torch.full((NUM_ROWS,), STEP)
    _, branches, _ = ops.branch_step(x, old, TABLE, STEP, NUM_BRANCHES, 0, range(NUM_ROWS))
    v = (old.float() + 0.01 * changed * torch.randn(NUM_ROWS, numel)).to(dtype).requires_grad_()
    advantages = torch.randn(NUM_ROWS, NUM_BRANCHES)
    inputs = baselines.LossInputs(x, branches, old, advantages, step, CLIP_RANGE)

    def gradient(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), v)

    arguments = (x, branches, old, advantages, TABLE, steps)
    scripts, tuned = baselines.script_policy_loss, baselines.tuned_policy_loss
    calls = {OURS: gradient(lambda: ops.policy_loss(v, *arguments, clip_range=CLIP_RANGE).loss)}
    calls |= _replaced(scripts, tuned, lambda f: gradient(lambda: f(v, inputs)))
    return Case(calls, (4 + NUM_BRANCHES) * x.nbytes, NUM_BRANCHES * x.numel())
