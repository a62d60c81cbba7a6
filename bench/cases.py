"""What is timed: every op beside its baselines, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tempflow_fast import linear_sigmas, ops, step_table

from . import baselines

NUM_ROWS, NUM_BRANCHES, STEP, CLIP_RANGE = 4, 6, 3, 1e-4
TABLE = step_table(linear_sigmas(10, 3.0))
SHAPES = {
    f"{name} D={numel}": (dtype, numel)
    for numel in (65_536, 262_144)  # SD3.5-M at 512 px, and at 1024 px like FLUX.1
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
}
OURS = "tempflow_fast"
# The tests that gate a figure, as a pytest expression.
GATES = {"branch_step": "test_branch_and_euler_step", "policy_loss": "test_policy_loss or test_first_update"}


def gate(op: str) -> None:
    """Refuse to go on when the correctness tests of `op` fail."""
    if pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", "tests/test_ops.py", "-k", GATES[op]]) != 0:
        raise SystemExit(f"bench: no figures for {op}: its tests fail")


def compiled(function: Callable, **options: object) -> Callable:
    """torch.compile with eager random numbers: inductor's own are ten times slower on a CPU."""
    torch._inductor.config.fallback_random = True
    return torch.compile(function, fullgraph=True, **options)


def branch_step(dtype: torch.dtype, numel: int) -> dict[str, Callable[[], object]]:
    """Candidates for one branch step of 4 rows and 6 branches."""
    latents, velocity = (torch.randn(NUM_ROWS, numel).to(dtype) for _ in range(2))
    step, ids = baselines.Step(*TABLE.coefficients()[STEP].tolist()), torch.arange(NUM_ROWS)
    script, tuned = baselines.script_branch_step, baselines.tuned_branch_step
    functions = {
        "eager, as in scripts": script,
        "eager, tuned": tuned,
        "compile, as in scripts": compiled(script),
        "compile, tuned": compiled(tuned),
    }
    calls = {name: lambda f=f: f(latents, velocity, step, NUM_BRANCHES) for name, f in functions.items()}
    return calls | {OURS: lambda: ops.branch_step(latents, velocity, TABLE, STEP, NUM_BRANCHES, 0, ids)}


def policy_loss(dtype: torch.dtype, numel: int) -> dict[str, Callable[[], object]]:
    """Candidates for the loss of 4 rows with 6 branches, forward and backward to the velocity."""
    latents, old = (torch.randn(NUM_ROWS, numel).to(dtype) for _ in range(2))
    _, branches, _ = ops.branch_step(latents, old, TABLE, STEP, NUM_BRANCHES, 0, range(NUM_ROWS))
    velocity = (old.float() + 0.01 * torch.randn(NUM_ROWS, numel)).to(dtype).requires_grad_()
    advantages, steps = torch.randn(NUM_ROWS, NUM_BRANCHES), torch.full((NUM_ROWS,), STEP)
    step = baselines.Step(*TABLE.coefficients()[STEP].tolist())
    inputs = baselines.LossInputs(latents, branches, old, advantages, step, CLIP_RANGE)
    script, tuned = baselines.script_policy_loss, baselines.tuned_policy_loss
    functions = {
        "eager, as in scripts": script,
        "eager, closed form": tuned,
        "compile, as in scripts": compiled(script),
        "compile, closed form": compiled(tuned),
    }
    losses = {name: lambda f=f: f(velocity, inputs) for name, f in functions.items()}
    arguments = (latents, branches, old, advantages, TABLE, steps, CLIP_RANGE)
    losses[OURS] = lambda: ops.policy_loss(velocity, *arguments).loss

    def with_backward(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), velocity)

    return {name: with_backward(loss) for name, loss in losses.items()}


OPS = {"branch_step": branch_step, "policy_loss": policy_loss}
