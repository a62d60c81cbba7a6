"""One network row per (trajectory, branch step) gives the gradient of one row per branch."""

from __future__ import annotations

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy

import tempflow_fast as tff
from tempflow_fast.grpo.objective import current_velocity, gather, micro_batch_loss

NUM_BRANCHES = 4


def drawn_rollout(policy, guidance_scale=1.0, num_branches=NUM_BRANCHES):
    table = tff.step_table(policy.sigmas(5), branch_steps=(0, 1, 3))
    noise = torch.randn(3, *policy.latent_shape, dtype=policy.dtype)
    return tff.rollout(policy, policy.encode(PROMPTS), table, noise, num_branches, guidance_scale=guidance_scale)


def perturb(policy, size):
    """Moves the policy away from the one that acted."""
    for parameter in policy.parameters():
        parameter.data += size * torch.randn_like(parameter)


def all_pairs(rollout):
    num, steps = rollout.states.shape[:2]
    return torch.arange(num * steps)


def gradients(loss, policy):
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, policy.parameters())])


def naive_loss(policy, rollout, advantages, velocity_old, clip_range, beta, guidance_scale):
    """Every branch separately: its own network row, two log-densities, their difference, exp, clamp."""
    table, total, outside = rollout.table, 0.0, 0
    num, num_steps, num_branches = advantages.shape

    def velocity(x, step, n):
        cond, uncond = policy.velocity(x[None], table.sigma[step].item(), rollout.condition[n : n + 1], guidance_scale)
        return (cond if uncond is None else uncond + guidance_scale * (cond - uncond))[0]

    for n in range(num):
        for index, step in enumerate(table.branch_steps):
            x, old = rollout.states[n, index], velocity_old[n * num_steps + index]
            mean_old = table.a[step] * x + table.b[step] * old
            for k in range(num_branches):
                child = rollout.branches[n, index, k]
                mean = table.a[step] * x + table.b[step] * velocity(x, step, n)
                logp, logp_old = (-((child - m) ** 2).mean() / (2 * table.s[step] ** 2) for m in (mean, mean_old))
                ratio, advantage = (logp - logp_old).exp(), advantages[n, index, k]
                clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
                outside += int(clipped != ratio)
                total = total + table.noise_weight[step] * torch.maximum(-advantage * ratio, -advantage * clipped)
                if beta:
                    with policy.reference(), torch.no_grad():
                        mean_ref = table.a[step] * x + table.b[step] * velocity(x, step, n)
                    total = total + beta * ((mean - mean_ref) ** 2).mean() / (2 * table.s[step] ** 2)
    return total / advantages.numel(), outside / advantages.numel()


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(("clip_range", "moved"), [(0.9, 1e-3), (1e-4, 1e-3), (1e-4, 0.1), (1e-4, 0.0)])
def test_shared_state_gradient_equals_the_naive_one(clip_range, moved, beta, guidance_scale):
    torch.manual_seed(1)
    policy = TinyPolicy(torch.float64)
    rollout = drawn_rollout(policy, guidance_scale)
    advantages = torch.randn(3, 3, NUM_BRANCHES, dtype=torch.float64)
    batch = gather(rollout, advantages.flatten(), all_pairs(rollout))
    velocity_old = current_velocity(policy, batch, guidance_scale)
    with policy.reference():
        pass  # the reference is the policy that acted
    perturb(policy, moved)

    expected, outside = naive_loss(policy, rollout, advantages, velocity_old, clip_range, beta, guidance_scale)
    out = micro_batch_loss(policy, batch, velocity_old, clip_range, beta, guidance_scale)
    # At moved = 0 the naive ratio is 1 up to rounding, so its clamp decides nothing; elsewhere the cases must differ.
    assert {0.9: outside == 0, 1e-4: outside > 0.05 or moved == 0.0}[clip_range]
    assert out.clip_fraction.item() == pytest.approx(outside)
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-13)
    got, want = gradients(out.loss, policy), gradients(expected, policy)
    assert (got - want).norm() <= 1e-10 * want.norm()


def test_unchanged_policy_needs_no_second_forward():
    policy = TinyPolicy(torch.float64)
    rollout = drawn_rollout(policy)
    advantages = torch.randn(3, 3, NUM_BRANCHES, dtype=torch.float64)
    batch = gather(rollout, advantages.flatten(), all_pairs(rollout))
    policy.calls.clear()
    alone = micro_batch_loss(policy, batch, None, 1e-4, 0.0, 1.0)
    assert policy.calls == [(9, True)]
    given = micro_batch_loss(policy, batch, current_velocity(policy, batch, 1.0), 1e-4, 0.0, 1.0)
    assert torch.equal(gradients(alone.loss, policy), gradients(given.loss, policy))
    assert alone.log_ratio.eq(0).all()


def test_stored_activations_do_not_grow_with_the_branches():
    policy, stored = TinyPolicy(), []
    for num_branches in (2, 16):
        rollout = drawn_rollout(policy, num_branches=num_branches)
        advantages = torch.randn(3, 3, num_branches)
        batch, sizes = gather(rollout, advantages.flatten(), all_pairs(rollout)), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            micro_batch_loss(policy, batch, None, 1e-4, 0.0, 1.0)
        stored.append(sum(sizes))
    assert stored[0] == stored[1] > 0


def test_a_row_carries_its_own_sigma_state_and_condition():
    policy = TinyPolicy(torch.float64)
    rollout = drawn_rollout(policy)
    advantages = torch.randn(3, 3, NUM_BRANCHES, dtype=torch.float64)
    batch = gather(rollout, advantages.flatten(), torch.tensor([6, 2]))
    assert batch.steps.tolist() == [0, 3]
    assert batch.sigma.tolist() == pytest.approx([1.0, 0.4])
    assert torch.equal(batch.latents, torch.stack([rollout.states[2, 0], rollout.states[0, 2]]))
    assert torch.equal(batch.branches[1], rollout.branches[0, 2])
    assert torch.equal(batch.advantages, torch.stack([advantages[2, 0], advantages[0, 2]]))
    assert torch.equal(batch.condition.tensors["text"], rollout.condition.tensors["text"][[2, 0]])
