"""The wavefront against a plain sequential rollout, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy

import tempflow_fast as tff
from tempflow_fast.ops import noise as philox

IDS = [11, 3, 1 << 40]


def sequential(policy, condition, table, noise, num_branches, seed, guidance_scale):
    """Trunk, then every branch and its tail separately: states, branches, log_prob and latents, as in a Rollout."""

    def velocity(x, step):
        cond, uncond = policy.velocity(x, table.sigma[step].item(), condition, guidance_scale)
        return cond if uncond is None else uncond + guidance_scale * (cond - uncond)

    x, states, branches, log_probs, finished = noise, [], [], [], []
    ids, numel, key = torch.tensor(IDS), noise[0].numel(), torch.tensor(seed)
    for step in range(max(table.branch_steps) + 1):
        v = velocity(x, step)
        if step in table.branch_steps:
            mean, s = table.a[step] * x + table.b[step] * v, table.s[step]
            eps = philox.normals(ids, key, step, num_branches, numel).view(len(x), num_branches, *x.shape[1:])
            for k in range(num_branches):
                child = y = mean + s * eps[:, k]
                density = -((child - mean) ** 2) / (2 * s**2) - torch.log(s) - 0.5 * math.log(2 * math.pi)
                for later in range(step + 1, table.num_steps):
                    y = y + table.dt[later] * velocity(y, later)
                states.append(x)
                branches.append(child)
                log_probs.append(density.flatten(1).mean(1))
                finished.append(y)
        x = x + table.dt[step] * v

    def stacked(parts):
        return torch.stack(parts, 1).unflatten(1, (len(table.branch_steps), num_branches))

    return stacked(states)[:, :, 0], stacked(branches), stacked(log_probs), stacked(finished)


@pytest.mark.parametrize("sampler", ["flow_sde", "dance_sde", "cps"])
@pytest.mark.parametrize(
    ("branch_steps", "guidance_scale", "max_batch"),
    [(None, 1.0, None), ((0, 2), 4.5, 5), ((1, 3), 1.0, 1), ((3,), 2.0, 7)],
)
def test_wavefront_equals_the_sequential_rollout(sampler, branch_steps, guidance_scale, max_batch):
    policy = TinyPolicy(torch.float64)
    table = tff.step_table(policy.sigmas(5), sampler, branch_steps=branch_steps)
    condition = policy.encode(PROMPTS)
    noise = torch.randn(3, *policy.latent_shape, dtype=torch.float64)
    drawn = tff.rollout(policy, condition, table, noise, 4, 9, IDS, max_batch, guidance_scale)
    expected = sequential(policy, condition, table, noise, 4, 9, guidance_scale)
    for got, want in zip((drawn.states, drawn.branches, drawn.log_prob, drawn.latents), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def stacked(policy, condition, table, noise, num_branches, seed):
    """The wavefront written out for dense branches: one call on the trunks and a block [N, K] per earlier step."""
    x, blocks, branches = noise, [], []
    for step in range(table.num_steps):
        trunk_lives = step <= table.branch_steps[-1]
        rows = torch.cat([x] * trunk_lives + blocks)
        owners = torch.cat(
            [torch.arange(3)] * trunk_lives + [torch.arange(3).repeat_interleave(num_branches)] * len(blocks)
        )
        v, _ = policy.velocity(rows, table.sigma[step].float().expand(len(rows)), condition[owners])
        moved = tff.ops.euler_step(rows, v, table, step)
        x = moved[:3]
        if step in table.branch_steps:
            x, drawn, _ = tff.ops.branch_step(rows[:3], v[:3], table, step, num_branches, seed, IDS)
            branches.append(drawn)
        blocks = list(moved[3 * trunk_lives :].split(3 * num_branches)) if blocks else []
        blocks += [branches[-1].flatten(0, 1)] if step in table.branch_steps else []
    finished = [block.unflatten(0, (3, num_branches)) for block in blocks]
    return torch.stack(branches, 1), torch.stack(finished, 1)


@pytest.mark.parametrize("branch_steps", [None, (1, 3), (0, 4)])
def test_dense_branches_have_the_bits_of_the_wavefront_written_out(branch_steps):
    policy = TinyPolicy()
    table = tff.step_table(policy.sigmas(5), branch_steps=branch_steps)
    condition, noise = policy.encode(PROMPTS), torch.randn(3, *policy.latent_shape)
    drawn = tff.rollout(policy, condition, table, noise, 4, 9, IDS)
    for got, want in zip((drawn.branches, drawn.latents), stacked(policy, condition, table, noise, 4, 9), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("num_steps", "num_branches", "branch_steps", "rows"),
    [(10, 6, range(9), 279), (10, 6, None, 279), (6, 8, (0, 2), 3 + 8 * (5 + 3)), (4, 3, (3,), 4), (1, 2, (0,), 1)],
)
def test_calls_and_row_evaluations_are_counted(num_steps, num_branches, branch_steps, rows):
    policy = TinyPolicy()
    table = tff.step_table(policy.sigmas(num_steps), branch_steps=branch_steps)
    noise = torch.randn(3, *policy.latent_shape)
    drawn = tff.rollout(policy, policy.encode(PROMPTS), table, noise, num_branches)
    assert sum(count for count, _ in policy.calls) == drawn.num_row_evaluations == 3 * rows
    num_calls = max(table.branch_steps) + 1 if rows == num_steps else num_steps
    assert len(policy.calls) == drawn.num_calls == num_calls == num_steps


def test_max_batch_cuts_calls_into_equal_pieces():
    policy = TinyPolicy()
    table = tff.step_table(policy.sigmas(3), branch_steps=(0,))
    noise = torch.randn(3, *policy.latent_shape)
    drawn = tff.rollout(policy, policy.encode(PROMPTS), table, noise, 7, max_batch=10)
    assert [count for count, _ in policy.calls] == [3, 7, 7, 7, 7, 7, 7]
    assert drawn.num_calls == 7


def test_a_trajectory_does_not_depend_on_its_neighbours():
    policy = TinyPolicy(torch.float64)
    table = tff.step_table(policy.sigmas(4))
    condition, noise = policy.encode(PROMPTS), torch.randn(3, *policy.latent_shape, dtype=torch.float64)
    together = tff.rollout(policy, condition, table, noise, 3, 5, IDS)
    order = torch.tensor([2, 0])
    apart = tff.rollout(policy, condition[order], table, noise[order], 3, 5, [IDS[row] for row in order])
    torch.testing.assert_close(apart.latents, together.latents[order], rtol=1e-12, atol=1e-12)
    other_seed = tff.rollout(policy, condition, table, noise, 3, 6, IDS)
    assert not torch.isclose(other_seed.branches, together.branches).any(dim=-1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": torch.zeros(3, 3, 2)}, r"noise must be \[N, 3, 2, 2\] with N >= 1, got \[3, 3, 2\]"),
        ({"noise": torch.zeros(0, 3, 2, 2)}, r"noise must be .* got \[0, 3, 2, 2\]"),
        ({"noise": torch.zeros(2, 3, 2, 2)}, "condition must be of 2 rows like noise, got 3"),
        ({"trajectory_ids": [1, 2]}, r"trajectory_ids must be \[3\]"),
        ({"num_branches": 0}, "num_branches must be >= 1, got 0"),
        ({"trajectory_ids": [0, 1, 1.5]}, "trajectory_ids must be an integer, got 1.5"),
        ({"num_branches": 2.0}, "num_branches must be an integer, got 2.0"),
        ({"max_batch": 0}, "max_batch must be >= 1 or None, got 0"),
        ({"table": tff.step_table([1.0, 0.5, 0.0], "ode")}, "table must be one with a branch step, got none"),
    ],
)
def test_errors_come_before_any_network_call(changes, message):
    policy = TinyPolicy()
    arguments = {
        "condition": policy.encode(PROMPTS),
        "table": tff.step_table(policy.sigmas(3)),
        "noise": torch.zeros(3, 3, 2, 2),
        "num_branches": 2,
    }
    with pytest.raises(ValueError, match=f"rollout: {message}"):
        tff.rollout(policy, **{**arguments, **changes})
    assert not policy.calls
