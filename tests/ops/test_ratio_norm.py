"""The normalised ratio of GRPO-Guard in policy_loss: its formula, its derivatives, and what it is for."""

from __future__ import annotations

import math

import pytest
import torch
from support.op_cases import SCALE, STEPS, Case, make_case

from tempflow_fast import GRPOConfig, linear_sigmas, ops, step_table

TABLE = step_table(linear_sigmas(8, 3.0)).with_ratio_norm()
BETA = 0.3


def formula(case: Case, clip_range: float) -> tuple[torch.Tensor, ...]:
    """The loss as in the scripts of GRPO-Guard, in float64, and its gradient by autograd.

    Two log-densities, the bias of their difference added, the sum times s.
    """
    guided = case.velocity if case.uncond is None else ops.guided_velocity(case.velocity, case.uncond, SCALE)
    v = guided.double().requires_grad_()
    x, old, ref, branches = (t.double() for t in (case.latents, case.velocity_old, case.velocity_ref, case.branches))
    a, b, s, weight = (getattr(TABLE, name)[STEPS][:, None] for name in ("a", "b", "s", "noise_weight"))

    def mean(velocity):
        return a * x + b * velocity

    def density(velocity):
        return -((branches - mean(velocity)[:, None]) ** 2).mean(-1) / (2 * s**2)

    bias = ((mean(v) - mean(old)) ** 2).mean(-1, keepdim=True) / (2 * s**2)
    log_ratio = (density(v) - density(old) + bias) * s
    ratio, advantages = log_ratio.exp(), case.advantages.double()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    kl = ((b * (v - ref)) ** 2).mean(1, keepdim=True).div(2 * s**2).mean()
    loss = (weight * torch.maximum(-advantages * ratio, -advantages * clipped)).mean() + BETA * kl
    loss.backward()
    return loss.detach(), log_ratio.detach(), kl.detach(), v.grad


def computed(case: Case, clip_range: float):
    velocity = case.velocity.clone().requires_grad_()
    out = ops.policy_loss(
        velocity, case.latents, case.branches, case.velocity_old, case.advantages, TABLE, STEPS,
        clip_range=clip_range, velocity_ref=case.velocity_ref, beta=BETA, velocity_uncond=case.uncond,
        guidance_scale=case.scale,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(out.loss, velocity)
    return out, gradient / case.scale


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float64, 1e-9)])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("numel", [37, 2049])
def test_every_body_computes_the_formula(body, dtype, tolerance, guided, numel):
    case = make_case(dtype, numel, guided)
    out, gradient = computed(case, clip_range=1e-3)
    loss, log_ratio, kl, expected = formula(case, clip_range=1e-3)
    fine = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(out.loss.double(), loss, rtol=fine, atol=fine)
    torch.testing.assert_close(out.log_ratio.double(), log_ratio, rtol=10 * fine, atol=fine * float(log_ratio.std()))
    torch.testing.assert_close(out.kl.double(), kl, rtol=10 * fine, atol=fine)
    torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance * float(expected.std()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_unchanged_policy_has_ratio_exactly_one(body, dtype):
    case = make_case(dtype, 300, guided=False)
    case = case._replace(velocity_old=case.velocity)
    out, gradient = computed(case, clip_range=1e-3)
    assert out.log_ratio.eq(0).all()
    assert gradient.abs().max() > 0


@pytest.mark.slow
def test_gradients_and_hessians_in_float64():
    case = make_case(torch.float64, 7, guided=False)

    def loss(velocity):
        return ops.policy_loss(
            velocity, case.latents, case.branches, case.velocity_old, case.advantages, TABLE, STEPS, clip_range=0.9
        ).loss

    velocity = case.velocity.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, velocity, check_forward_ad=True)
    forward = torch.func.jacfwd(torch.func.grad(loss))(case.velocity)
    reverse = torch.func.jacrev(torch.func.grad(loss))(case.velocity)
    torch.testing.assert_close(forward, reverse)


def test_the_normalised_log_ratio_has_no_bias_and_one_spread_at_all_steps():
    """What it is for, on branches of the old policy: plain log-ratios are below 0 on average, and spread as 1 / s."""
    generator = torch.Generator().manual_seed(0)
    plain = step_table(linear_sigmas(8, 3.0))
    x, old = (torch.randn(7, 512, generator=generator) for _ in range(2))
    # The same distance of the means at every step, so that only s differs.
    velocity = old + 0.05 * torch.randn(7, 512, generator=generator) / plain.b[:7, None].float()
    means = (plain.a[:7, None] * x + plain.b[:7, None] * old).float()
    noise = torch.randn(7, 2000, 512, generator=generator)
    branches = means[:, None] + plain.s[:7, None, None].float() * noise
    found = {}
    for name, table in (("plain", plain), ("normalised", plain.with_ratio_norm())):
        log_ratio = ops.policy_loss(velocity, x, branches, old, torch.zeros(7, 2000), table, range(7)).log_ratio
        found[name] = log_ratio.mean(1), log_ratio.std(1)
    bias = -((means - (plain.a[:7, None] * x + plain.b[:7, None] * velocity).float()) ** 2).mean(1)
    torch.testing.assert_close(found["plain"][0], bias / (2 * plain.s[:7].float() ** 2), rtol=0.1, atol=1e-4)
    mean, std = found["normalised"]
    assert bool((mean.abs() < 4 * std / math.sqrt(2000)).all())
    assert float(std.max() / std.min()) < 1.15
    assert float(found["plain"][1].max() / found["plain"][1].min()) > 1.5


def test_weights_undo_the_size_of_the_gradient_and_average_one():
    plain = step_table(linear_sigmas(8, 3.0), branch_steps=[1, 3, 6]).with_equal_weights()
    table = plain.with_ratio_norm()
    steps = list(table.branch_steps)
    torch.testing.assert_close(
        table.noise_weight[steps] * -table.dt[steps],
        torch.full((3,), 1.0).double() * (table.noise_weight[steps[0]] * -table.dt[steps[0]]),
    )
    assert float(table.noise_weight[steps].mean()) == pytest.approx(1)
    assert table.noise_weight.gt(0).sum() == 3
    assert table.coefficients()[steps, 4].lt(0).all()
    assert not plain.ratio_norm
    assert table.followed_by([[0.5, 0.2, 0.0]]).ratio_norm


def test_a_setting_asks_for_it():
    class Schedule:
        def sigmas(self, num_steps):
            return linear_sigmas(num_steps)

    assert GRPOConfig(num_steps=4, ratio_norm=True).table(Schedule()).ratio_norm
    assert not GRPOConfig(num_steps=4).table(Schedule()).ratio_norm
