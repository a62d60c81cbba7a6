"""Tails: their levels, their solvers against plain loops and diffusers, what they cost, and what they leave alone."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.grpo.tails import levels_at, make_tails, multistep_corrections, tails_of, uniform_positions

NUM_STEPS = 6
LEVELS = tff.linear_sigmas(NUM_STEPS, 3.0)


def start(policy):
    noise = torch.randn(3, *policy.latent_shape, dtype=policy.dtype, generator=torch.Generator().manual_seed(1))
    return policy.encode(PROMPTS), tff.step_table(LEVELS, "cps", 0.8), noise


def uniform_levels(levels, first, length):
    last = len(levels) - 1
    return levels_at(levels, [first, *uniform_positions(first, last, length), last])


def test_levels_are_uniform_in_the_schedule():
    assert uniform_levels(LEVELS, 2, 4) == LEVELS[2:]
    assert uniform_levels(LEVELS, 2, 2) == [LEVELS[2], LEVELS[4], 0.0]
    assert uniform_levels(LEVELS, 3, 1) == [LEVELS[3], 0.0]
    halves = uniform_levels(LEVELS, 3, 2)
    assert halves == [LEVELS[3], pytest.approx((LEVELS[4] + LEVELS[5]) / 2), 0.0]


def solve(levels, x, velocity, solver):
    """A tail in a plain loop, each solver by its textbook formula."""
    history = []
    for j, (here, after) in enumerate(pairwise(levels)):
        v, h = velocity(x, here), after - here
        history.append((here, v, x - here * v))
        if solver == "euler" or j == 0 or (solver == "dpmpp_2m" and after == 0):
            x = x + h * v
        elif solver == "ab2":
            before, v_before, _ = history[-2]
            r = h / (here - before)
            x = x + h * ((1 + r / 2) * v - r / 2 * v_before)
        else:
            before, _, data_before = history[-2]
            lambdas = [math.log((1 - sigma) / sigma) for sigma in (before, here, after)]
            step, ratio = lambdas[2] - lambdas[1], (lambdas[1] - lambdas[0]) / (lambdas[2] - lambdas[1])
            data = history[-1][2]
            slope = (data - data_before) / ratio
            x = after / here * x - (1 - after) * math.expm1(-step) * (data + slope / 2)
    return x


@pytest.mark.parametrize("solver", ["euler", "ab2", "dpmpp_2m"])
@pytest.mark.parametrize(
    ("lengths", "positions"),
    [
        ({0: 5, 1: 4, 3: 2}, {}),
        ({0: 5, 1: 4, 3: 2}, {1: (2.5, 3, 5.5)}),  # as many calls as steps, at other levels
        ({0: 3, 1: 3, 3: 2}, {0: (2, 4), 1: (3, 5)}),
        ({0: 1, 1: 4, 3: 1}, {}),
        ({0: 4, 1: 2, 3: 1}, {0: (2, 3, 5), 3: ()}),
    ],
)
@pytest.mark.parametrize(("max_batch", "guidance_scale"), [(None, 1.0), (4, 2.5)])
def test_tails_equal_a_plain_loop(solver, lengths, positions, max_batch, guidance_scale):
    policy = TinyPolicy(torch.float64)
    condition, _, noise = start(policy)
    table = tff.step_table(LEVELS, "cps", 0.8, branch_steps=(0, 1, 3))
    tails = make_tails(table, lengths, solver, positions=positions)
    arguments = (policy, condition, table, noise, 4, 9, None, max_batch, guidance_scale)
    drawn, full = tff.rollout(*arguments, tails=tails), tff.rollout(*arguments)
    assert torch.equal(drawn.branches, full.branches)

    def velocity(x, sigma):
        texts = policy.encode([prompt for prompt in PROMPTS for _ in range(4)])
        cond, uncond = policy.velocity(x, sigma, texts, guidance_scale)
        return cond if uncond is None else uncond + guidance_scale * (cond - uncond)

    for column, (step, length) in enumerate(lengths.items()):
        with torch.no_grad():
            inner = positions.get(step)
            levels = uniform_levels(LEVELS, step + 1, length)
            if inner is not None:
                levels = np.interp((step + 1, *inner, NUM_STEPS), range(NUM_STEPS + 1), LEVELS).tolist()
            want = solve(levels, full.branches[:, column].flatten(0, 1), velocity, solver)
        torch.testing.assert_close(drawn.latents[:, column].flatten(0, 1), want, rtol=1e-11, atol=1e-11)
    rows = 3 * 4 + 3 * 4 * sum(lengths.values())
    assert drawn.num_row_evaluations == rows
    last = max(step + 1 + length for step, length in lengths.items())
    assert drawn.num_calls == (last if max_batch is None else drawn.num_calls)


def test_dpmpp_is_that_of_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    levels = uniform_levels(tff.linear_sigmas(10, 3.0), 2, 5)
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(5)
    scheduler.sigmas = torch.tensor(levels, dtype=torch.float64)
    scheduler.timesteps = torch.arange(5)
    x = ours = torch.randn(4, dtype=torch.float64)
    corrections, memory = multistep_corrections(levels, "dpmpp_2m"), 0.0
    for j in range(5):

        def velocity(latents, j=j):
            return torch.sin(3 * latents) + j

        x = scheduler.step(velocity(x), scheduler.timesteps[j], x).prev_sample
        v = velocity(ours)
        data = ours - levels[j] * v
        ours, memory = ours + (levels[j + 1] - levels[j]) * (v + corrections[j] * (data - memory)), data
    torch.testing.assert_close(ours, x.double(), rtol=1e-6, atol=1e-6)  # diffusers rounds to float32 in every step


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ab2", 2), ("dpmpp_2m", 2)])
def test_the_order_of_a_solver(solver, order):
    """The error of dx/dsigma = x cos(5 sigma) from 0.8 to 0.1 falls by 2^order when the steps are halved."""
    exact = math.exp((math.sin(0.5) - math.sin(4.0)) / 5)
    errors = []
    for n in (320, 640):
        levels = [0.8 - 0.7 * j / n for j in range(n + 1)]
        x, memory = 1.0, 0.0
        for j, correction in enumerate(multistep_corrections(levels, solver)):
            v = x * math.cos(5 * levels[j])
            kept = v if solver == "ab2" else x - levels[j] * v
            x, memory = x + (levels[j + 1] - levels[j]) * (v + correction * (kept - memory)), kept
        errors.append(abs(x - exact))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def counted(config, seed=0):
    """The metrics of an iteration, the rows of its rollout and training calls, and its number of images."""
    policy, images = TinyPolicy(), []
    reward = lambda drawn, *texts: images.append(len(drawn)) or brightness(drawn, *texts)  # noqa: E731
    metrics = grpo_step(policy, PROMPTS, reward, sgd(policy), config, seed)
    drawn, trained = ([rows for rows, graph in policy.calls if graph is wanted] for wanted in (False, True))
    return metrics, sum(drawn[: int(metrics["num_calls"])]), sum(trained), sum(images)


def test_two_steps_at_four_branch_steps_cost_53_evaluations_instead_of_279():
    paper = GRPOConfig(num_steps=10, num_seeds=1, num_branches=6, num_updates=1)
    cheap = GRPOConfig(
        num_steps=10, num_seeds=1, num_branches=6, num_updates=1, branch_steps=(1, 2, 3, 4), tail_steps=2
    )
    for config, rows, images, trained in ((paper, 279, 54, 9), (cheap, 53, 24, 4)):
        ours = Geometry(config, len(PROMPTS)).costs()[0]
        assert (ours.rollout, ours.images, ours.trained) == (3 * rows, 3 * images, 3 * trained)
        assert counted(config)[1:] == (3 * rows, 3 * trained, 3 * images)


@pytest.mark.parametrize(
    "settings",
    [
        {"tail_steps": 2, "tail_solver": "ab2", "max_batch": 7},
        {"tail_steps": (3, 2, 1), "num_branches": (2, 3, 4), "branches_per_trajectory": 2},
        {"tail_steps": (1, 0, 3), "branch_steps": (3, 4, 1), "num_branches": (2, 2, 3)},
        {"tail_precision": "bf16", "tail_steps": 2, "max_batch": 4},
        {"tail_guidance": (0.0, 0.7), "guidance_scale": 3.0, "sigmas": (*LEVELS[:-2], 0.0)},
    ],
)
def test_an_iteration_costs_what_the_geometry_says(settings):
    config = GRPOConfig(**{"num_steps": 5, "num_seeds": 2, "branch_steps": (0, 1, 3), "num_branches": 3, **settings})
    if "sigmas" not in settings:
        config = GRPOConfig(**{**vars(config), "sigmas": (0.95, 0.8, 0.6, 0.4, 0.2, 0.1)})
    for seed in range(2):
        geometry, (metrics, rows, trained, images) = Geometry(config, 3, seed=seed), counted(config, seed)
        ours = geometry.costs()[0]
        assert (ours.rollout, ours.trained, ours.images) == (rows, trained, images)
        assert metrics["num_calls"] == geometry.rollout_calls
        assert metrics["num_row_evaluations"] == rows


def test_the_precision_of_tails_is_not_that_of_trunks():
    policy, inside = TinyPolicy(), []
    condition, table, noise = start(policy)

    @contextmanager
    def context():
        inside.append(len(policy.calls))
        with torch.autocast("cpu", torch.bfloat16):
            yield

    tails = make_tails(table, {step: 2 - (step == 4) for step in range(5)}, own_precision=True)
    drawn = tff.rollout(policy, condition, table, noise, 4, tails=tails, tail_context=context)
    full = tff.rollout(policy, condition, table, noise, 4)
    torch.testing.assert_close(drawn.states, full.states, rtol=1e-6, atol=1e-6)  # calls of other row counts
    torch.testing.assert_close(drawn.branches, full.branches, rtol=1e-6, atol=1e-6)
    assert [policy.calls[place][0] for place in inside] == [12, 24, 24, 24, 24][: len(inside)]
    exact = tff.rollout(policy, condition, table, noise, 4, tails=make_tails(table, tails.lengths))
    distance = (drawn.latents - exact.latents).norm() / exact.latents.norm()
    assert 0 < distance < 1e-2


def test_tails_are_guided_in_their_interval_alone():
    seen = []

    class Noting(TinyPolicy):
        def velocity(self, latents, sigma, condition, guidance_scale=1.0):
            seen.append((round(float(sigma[0]), 6), len(latents), guidance_scale))
            return super().velocity(latents, sigma, condition, guidance_scale)

    policy = Noting()
    condition, _, noise = start(policy)
    table = tff.step_table(LEVELS, "cps", 0.8, branch_steps=(0, 2))
    tails = make_tails(table, {0: 5, 2: 3}, guidance=(LEVELS[4], LEVELS[3]))
    tff.rollout(policy, condition, table, noise, 2, guidance_scale=3.0, tails=tails)
    levels = [round(level, 6) for level in LEVELS]
    assert seen == [
        (levels[0], 3, 3.0),
        (levels[1], 3, 3.0),
        (levels[1], 6, 1.0),
        (levels[2], 3, 3.0),
        (levels[2], 6, 1.0),
        (levels[3], 12, 3.0),
        (levels[4], 12, 3.0),
        (levels[5], 12, 1.0),
    ]


def test_evaluation_and_the_first_ratio_do_not_depend_on_tails():
    config = GRPOConfig(num_steps=5, num_branches=3, num_seeds=1, tail_steps=1, tail_precision="bf16", beta=0.1)
    policy = TinyPolicy()
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy, 0.0), config)
    assert metrics["log_ratio_rms"] == metrics["kl"] == 0
    assert metrics["grad_norm"] > 0
    assert config.table(policy).num_steps == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail_steps": 0}, "tail_steps must be >= 1, got 0"),
        ({"tail_steps": (2, 2)}, "tail_steps must be one number for each of the 4 branch steps, got"),
        (
            {"tail_steps": (4, 4, 1, 1)},
            r"tail_steps must be at least 1 and at most the steps that remain \(4, 3, 2, 1\)",
        ),
        ({"tail_steps": (4, 0, 1, 1)}, r"tail_steps must be at least 1 and at most the steps that remain"),
        ({"tail_levels": "nearest"}, "tail_levels must be 'uniform' where tails are the full ones, got 'nearest'"),
        ({"tail_levels": "near", "tail_steps": 2}, "tail_levels must be .*nearest"),
        (
            {"tail_levels": (2, 3), "tail_steps": "adaptive", "gate_every": 1},
            "tail_levels must be 'uniform' or 'nearest' with adaptive tails",
        ),
        (
            {"tail_levels": (2, 3), "tail_steps": 2},
            "tail_levels must be one position for each of the 3 levels between branches and images",
        ),
        (
            {"tail_levels": (2, 3, 3), "tail_steps": 2},
            "tail_levels must be ascending positions between 3 and 5 for branch step 2, got",
        ),
        ({"tail_solver": "heun"}, "tail_solver must be"),
        (
            {"tail_precision": "bf16", "rollout_precision": "bf16"},
            "tail_precision must be None where rollout_precision",
        ),
        ({"tail_precision": "int8", "cuda_graphs": True}, "tail_precision must be None or 'bf16' with cuda_graphs"),
        ({"tail_guidance": (0.9, 0.2)}, "tail_guidance must be the lowest and the highest sigma"),
    ],
)
def test_impossible_tails_are_named(settings, message):
    with pytest.raises(ValueError, match=f"GRPOConfig: {message}"):
        GRPOConfig(num_steps=5, **settings)


def test_tails_that_cannot_be_are_refused():
    policy = TinyPolicy()
    condition, table, noise = start(policy)
    for lengths, message in (({0: 6}, r"in 1..5 at step 0, got 6"), ({2: 0}, r"in 1..3 at step 2, got 0")):
        with pytest.raises(ValueError, match=f"make_tails: lengths must be {message}"):
            make_tails(table, lengths)
    for inner in ((2, 3), (2, 2), (1,), (6,)):
        message = "make_tails: positions must be 1 ascending ones between 1 and 6 at step 0, got"
        with pytest.raises(ValueError, match=message):
            make_tails(table, {0: 2}, positions={0: inner})
    with pytest.raises(ValueError, match=r"rollout: tails must be of every branch step, got none of \[1, 2, 3, 4\]"):
        tff.rollout(policy, condition, table, noise, 2, tails=make_tails(table, {0: 1}))


def test_tails_of_another_table_are_refused():
    policy = TinyPolicy()
    condition, table, noise = start(policy)
    other = tails_of(GRPOConfig(num_steps=NUM_STEPS), tff.step_table(LEVELS))
    with pytest.raises(ValueError, match="rollout: tails must be made for table"):
        tff.rollout(policy, condition, table, noise, 2, tails=other)
