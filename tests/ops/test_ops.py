"""Values and gradients of every op, in every body, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from support.marks import DTYPES, GUIDED
from support.op_cases import IDS, ROWS, SCALE, SEED, STEPS, TABLE, Case, K, make_case, oracle
from support.tolerances import assert_near
from torch import Tensor

from tempflow_fast import ops
from tempflow_fast.ops import reference

SIZES = pytest.mark.parametrize("numel", [1, 3, 63, 1001, 4097])
pytestmark = pytest.mark.usefixtures("poisoned")


@DTYPES
@SIZES
@GUIDED
def test_branch_and_euler_step(body, dtype, numel, guided):
    case = make_case(dtype, numel, guided)
    state = (case.latents, case.velocity, TABLE, 3)
    guidance = {"velocity_uncond": case.uncond, "guidance_scale": case.scale}
    moved, branches, log_prob = ops.branch_step(*state, K, SEED, IDS, **guidance)
    wide = [None if t is None else t.double() for t in case[:3]]
    want_moved, want_branches, _ = reference.branch_step(*wide, case.scale, ROWS, 3, K, torch.tensor(SEED), IDS)
    assert_near("latents", dtype, moved, want_moved)
    assert_near("latents", dtype, branches, want_branches)
    assert torch.equal(ops.euler_step(*state, **guidance), moved)
    # The density is that of the branch as it is stored.
    velocity = wide[1] if wide[2] is None else wide[2] + SCALE * (wide[1] - wide[2])
    for k in range(K):
        want = reference.log_prob(branches[:, k].double(), wide[0], velocity, ROWS, torch.full_like(STEPS, 3))
        assert_near("log_prob", dtype, log_prob[:, k], want)


@DTYPES
@SIZES
def test_log_prob(body, dtype, numel):
    case = make_case(dtype, numel, guided=False)
    velocity, cotangent = case.velocity.clone().requires_grad_(), torch.randn(5)
    got = ops.log_prob(case.branches[:, 1], case.latents, velocity, TABLE, STEPS)
    got.backward(cotangent)
    wide = (case.branches[:, 1].double(), case.latents.double(), case.velocity.double(), ROWS, STEPS)
    assert_near("log_prob", dtype, got.detach(), reference.log_prob(*wide))
    assert_near("gradient", dtype, velocity.grad, reference.log_prob_backward(cotangent.double(), *wide))


@DTYPES
@SIZES
@GUIDED
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_policy_loss(body, dtype, numel, guided, beta):
    assert_policy_loss(make_case(dtype, numel, guided), beta)


def changed_in_part(case: Case) -> Case:
    """The first row as the acting policy had it, the others in their first 3000 elements only."""
    guided = case.velocity if case.uncond is None else ops.guided_velocity(case.velocity, case.uncond, SCALE)
    old = case.velocity_old.clone()
    old[0], old[1:, :3000] = guided[0], guided[1:, :3000]
    return case._replace(velocity_old=old)


@DTYPES
@GUIDED
def test_policy_loss_of_a_policy_that_looks_unchanged(body, dtype, guided):
    """Bodies may guess that all ratios are 1, in which case they need not read the samples twice."""
    case = changed_in_part(make_case(dtype, 4097, guided))
    assert_policy_loss(case, beta=0.04)
    unchanged = case.velocity if not guided else ops.guided_velocity(case.velocity, case.uncond, SCALE)
    assert_policy_loss(case._replace(velocity_old=unchanged), beta=0.04)
    assert_policy_loss(case._replace(velocity_old=unchanged), beta=0.0)


def assert_policy_loss(case: Case, beta: float) -> None:
    """Every output and gradient of the op is near the oracle's."""
    dtype, guided = case.velocity.dtype, case.uncond is not None
    velocity = case.velocity.clone().requires_grad_()
    uncond = case.uncond.clone().requires_grad_() if guided else None
    got = ops.policy_loss(
        velocity,
        case.latents,
        case.branches,
        case.velocity_old,
        case.advantages,
        TABLE,
        STEPS,
        clip_range=1e-3,
        velocity_ref=case.velocity_ref,
        beta=beta,
        velocity_uncond=uncond,
        guidance_scale=case.scale,
    )
    (2.0 * got.loss).backward()
    loss, log_ratio, clip_fraction, kl, gradient = oracle(case, 1e-3, beta)
    assert_near("statistic", dtype, got.loss.detach(), loss)
    assert_near("log_ratio", dtype, got.log_ratio, log_ratio)
    assert_near("statistic", dtype, got.clip_fraction, clip_fraction)
    assert_near("statistic", dtype, got.kl, kl)
    assert_near("gradient", dtype, velocity.grad, 2 * case.scale * gradient)
    if guided:
        assert_near("gradient", dtype, uncond.grad, 2 * (1 - SCALE) * gradient)


@DTYPES
@GUIDED
def test_first_update_starts_at_log_ratio_zero(body, dtype, guided):
    case = make_case(dtype, 1001, guided)
    old = ops.guided_velocity(case.velocity, case.uncond, SCALE) if guided else case.velocity
    got = ops.policy_loss(
        case.velocity, case.latents, case.branches, old, case.advantages, TABLE, STEPS,
        velocity_uncond=case.uncond, guidance_scale=case.scale,
    )  # fmt: skip
    assert torch.equal(got.log_ratio, torch.zeros(5, K))
    assert got.clip_fraction == 0


def test_clip_decisions_are_finer_than_the_grain_of_float32(body):
    """A log-ratio of 1.00001 c is outside the range, though exp() rounds it onto the edge."""
    clip_range, numel = 1e-5, 4096
    _, _, b, s, _ = ROWS[3].tolist()
    latents, old = torch.zeros(2, numel), torch.zeros(2, numel)
    velocity = torch.full((2, numel), 1e-3, requires_grad=True)
    shift = b * 1e-3
    # log r = shift (2 x' - shift) / (2 s^2) for constant rows: choose x' for the log-ratio we want.
    wanted = torch.tensor([1.00001, 0.99999], dtype=torch.float64) * torch.log1p(torch.tensor(clip_range).double())
    branch = (wanted * s**2 / shift + shift / 2).float()
    branches = branch[:, None, None].repeat(1, 1, numel)
    steps = [3, 3]
    got = ops.policy_loss(velocity, latents, branches, old, torch.ones(2, 1), TABLE, steps, clip_range=clip_range)
    assert got.clip_fraction == 0.5
    assert torch.equal(got.log_ratio.exp()[0], got.log_ratio.exp()[1])
    got.loss.backward()
    assert not velocity.grad[0].any()
    assert velocity.grad[1].all()


def test_small_gradients_survive_float16(body):
    """A loss scale reaches the gradient before float16 could round it to zero."""
    case = make_case(torch.float16, 4097, guided=False)
    velocity = case.velocity.clone().requires_grad_()
    got = ops.policy_loss(velocity, case.latents, case.branches, case.velocity_old, case.advantages, TABLE, STEPS)
    (got.loss * 2.0**16).backward()
    assert (velocity.grad != 0).float().mean() > 0.99


@DTYPES
def test_no_rows(body, dtype):
    case = make_case(dtype, 6, guided=True, num_rows=0)
    latents, velocity, uncond = (t.unflatten(1, (2, 3)) for t in case[:3])
    moved, branches, log_prob = ops.branch_step(latents, velocity, TABLE, 1, K, 0, IDS[:0], uncond, SCALE)
    assert (moved.shape, branches.shape, log_prob.shape) == ((0, 2, 3), (0, K, 2, 3), (0, K))
    assert ops.euler_step(latents, velocity, TABLE, 1).shape == (0, 2, 3)
    assert ops.initial_noise((2, 3), 0, IDS[:0]).shape == (0, 2, 3)
    assert ops.log_prob(latents, latents, velocity, TABLE, STEPS[:0]).shape == (0,)
    v = velocity.clone().requires_grad_()
    got = ops.policy_loss(v, latents, branches, velocity, log_prob, TABLE, [], velocity_ref=velocity, beta=0.1)
    got.loss.backward()
    assert [t.item() for t in (got.loss, got.clip_fraction, got.kl)] == [0, 0, 0]
    assert v.grad.shape == (0, 2, 3)


def test_rows_may_stand_anywhere(body):
    """One row of any shape, expanded rows, rows and branches with gaps: the same bits as their contiguous copies."""
    wide = torch.randn(4, 7, 2, 3, 5)
    latents, velocity, uncond = wide[:, 2], wide[::2, 3].repeat_interleave(2, 0), wide[:1, 4].expand(4, 2, 3, 5)
    branches, advantages = wide[:, 1:4], torch.randn(4, 6).T[::2].T
    steps = torch.tensor([0, 9, 1, 9, 2, 9, 3, 9])[::2]
    args = (latents, branches, velocity, advantages, TABLE, steps)
    got = ops.policy_loss(velocity, *args, velocity_uncond=uncond, guidance_scale=2.0, velocity_ref=uncond)
    copies = [a.contiguous() if isinstance(a, Tensor) else a for a in args]
    want = ops.policy_loss(
        velocity, *copies, velocity_uncond=uncond.contiguous(), guidance_scale=2.0, velocity_ref=uncond
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    got = ops.branch_step(latents, velocity, TABLE, 2, 2, 5, IDS[:4], uncond, 2.0)
    want = ops.branch_step(latents.contiguous(), velocity, TABLE, 2, 2, 5, IDS[:4], uncond.contiguous(), 2.0)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    alone = ops.branch_step(latents[3:], velocity[3:], TABLE, 2, 2, 5, IDS[3:4], uncond[3:], 2.0)
    assert all(torch.equal(a, b[3:]) for a, b in zip(alone, want, strict=True))
