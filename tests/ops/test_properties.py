"""What holds for every schedule, layout, size, dtype and value, tried on drawn ones, in every body."""

from __future__ import annotations

import os
import subprocess
import sys
from random import Random

import pytest
import torch
from support import TESTS
from support.op_bounds import check, compare, results
from support.op_draws import OPS, Call, draw_call, draw_table, noisy_steps
from torch import Tensor

from tempflow_fast import ops, step_table

hypothesis = pytest.importorskip("hypothesis")
given, strategies = hypothesis.given, hypothesis.strategies

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"  # a kernel takes a hundred times as long there
PROFILE = hypothesis.settings(
    max_examples=12 if INTERPRETING else 100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
SOURCES = strategies.integers(0, 2**32).map(Random)


@pytest.mark.parametrize("op", OPS)
@PROFILE
@given(rng=SOURCES)
def test_every_body_gives_what_the_reference_allows(body, op, rng):
    check(draw_call(rng, op))


@pytest.mark.parametrize(
    ("op", "result", "share"),
    [
        ("guided_velocity", "0", 0.6), ("euler_step", "0", 0.6), ("branch_step", "0", 0.6), ("branch_step", "1", 0.6),
        ("branch_step", "2", 0.6), ("initial_noise", "0", 0.9), ("log_prob", "0", 0.6), ("log_prob", "gradient", 0.6),
        ("policy_loss", "log_ratio", 0.4), ("policy_loss", "gradient", 0.4), ("policy_loss", "loss", 0.4),
    ],
)  # fmt: skip
def test_the_bounds_notice_an_error_of_one_percent(op, result, share):
    """In most calls; in others float32 may overflow, or it is open which ratios are within the clip range."""
    noticed, tried = 0, 0
    for seed in range(150):
        call = draw_call(Random(seed), op)
        got = results(call)
        if got[result].double().nan_to_num().any():
            tried += 1
            try:
                compare(call, got | {result: got[result] * 1.01})
            except AssertionError:
                noticed += 1
    assert tried > 60
    assert noticed > share * tried


def permuted(call: Call, order: list[int]) -> Call:
    """The call with its rows in another order."""
    rows = ("trajectory_ids", "steps")
    return Call(
        call.op,
        {
            name: value[order] if isinstance(value, Tensor) else [value[i] for i in order] if name in rows else value
            for name, value in call.arguments.items()
        },
    )


@pytest.mark.parametrize("op", OPS)
@PROFILE
@given(rng=SOURCES)
def test_the_order_of_rows_changes_no_bit(body, op, rng):
    call = draw_call(rng, op)
    rows = len(call.arguments.get("trajectory_ids", call.arguments.get("velocity", ())))
    order = rng.sample(range(rows), rows)
    want, got = results(call), results(permuted(call, order))
    for name, value in want.items():
        if value.dim():
            same = torch.equal(got[name].nan_to_num(), value[order].nan_to_num())
            assert same or (body == "reference" and torch.allclose(got[name], value[order], equal_nan=True)), name


@pytest.mark.parametrize("op", ["branch_step", "log_prob", "policy_loss", "initial_noise"])
@PROFILE
@given(rng=SOURCES, num_threads=strategies.integers(2, 5))
def test_threads_change_no_bit(body, op, rng, num_threads):
    call, usual = draw_call(rng, op), torch.get_num_threads()
    want = results(call)
    try:
        torch.set_num_threads(num_threads)
        got = results(call)
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(got[name].nan_to_num(), value.nan_to_num()) for name, value in want.items())


@PROFILE
@given(rng=SOURCES)
def test_a_policy_that_has_not_changed_has_ratios_of_exactly_1(body, rng):
    call = draw_call(rng, "policy_loss")
    arguments = dict(call.arguments)
    velocity, uncond = arguments["velocity"], arguments.get("velocity_uncond")
    old = velocity if uncond is None else ops.guided_velocity(velocity, uncond, arguments["guidance_scale"])
    log_ratio = ops.policy_loss(**(arguments | {"velocity_old": old})).log_ratio
    used = (arguments["latents"].flatten(1), old.flatten(1), arguments["branches"].flatten(1))
    finite = torch.cat(used, 1).float().abs().amax(1) < 1e18
    assert not log_ratio[finite].any()


@PROFILE
@given(rng=SOURCES)
def test_noise_weights_average_1_over_the_branch_steps(rng):
    drawn = draw_table(rng)
    hypothesis.assume(noisy_steps(drawn))
    chosen = rng.sample(noisy_steps(drawn), rng.randrange(1, len(noisy_steps(drawn)) + 1))
    sigmas = [*drawn.sigma.tolist(), drawn.sigma_next[-1].item()]
    table = step_table(sigmas, drawn.sampler, drawn.noise_level, chosen)
    assert table.noise_weight[chosen].mean().item() == pytest.approx(1, abs=1e-12)
    assert not any(table.noise_weight[step] for step in range(table.num_steps) if step not in chosen)
    assert table.coefficients().isfinite().all()


@PROFILE
@given(rng=SOURCES)
def test_a_trunk_of_constant_velocity_is_a_straight_line(body, rng):
    """However the levels are spaced: the steps of the ODE add up to the way from the first level to the last."""
    table, x, v = draw_table(rng), torch.randn(2, 5), torch.randn(2, 5)
    moved = x
    for step in range(table.num_steps):
        moved = ops.euler_step(moved, v, table, step)
    want = x.double() + (table.sigma_next[-1] - table.sigma[0]) * v.double()
    torch.testing.assert_close(moved.double(), want, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_random_calls_for_some_seconds():
    """The short form of `make fuzz`."""
    command = [sys.executable, TESTS / "faults/fuzz_ops.py", "--calls", "2500", "--minutes", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "2,500 calls" in done.stdout
