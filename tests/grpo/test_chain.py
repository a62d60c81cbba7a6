"""Flow-GRPO's trajectories: the noise of every step stays, and one reward belongs to all steps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import Geometry, GRPOConfig, ops
from tempflow_fast.grpo import step
from tempflow_fast.grpo.branches import Branches
from tempflow_fast.grpo.chain import chain_rollout

CONFIG = GRPOConfig(num_steps=4, trunk="sde", num_branches=1, num_seeds=4, group="prompt", num_updates=1)


def drawn(branches, policy=None, max_batch=None, finished=None):
    policy = policy or TinyPolicy()
    num = branches.num_trajectories
    noise = ops.initial_noise(policy.latent_shape, 3, torch.arange(num))
    table = tff.step_table(policy.sigmas(4))
    texts = [PROMPTS[n % 3] for n in range(num)]
    return chain_rollout(
        policy, policy.encode(texts), table, noise, branches, 3, range(num), max_batch, on_finished=finished
    )


@torch.no_grad()
def test_every_state_is_the_noisy_latent_of_the_step_before():
    out = drawn(Branches.everywhere(2, {0: 1, 1: 1, 2: 1}))
    assert torch.equal(out.states[:, 1:], out.branches[:, :-1, 0])
    policy, table = TinyPolicy(), out.table
    for number in range(3):
        x = out.states[:, number]
        velocity, _ = policy.velocity(x, table.sigma[number].float(), out.condition)
        _, branches, log_prob = ops.branch_step(x, velocity, table, number, 1, 3, [0, 1])
        assert torch.equal(out.branches[:, number], branches)
        assert torch.equal(out.log_prob[:, number], log_prob)
    last, _ = policy.velocity(out.branches[:, 2, 0], table.sigma[3].float(), out.condition)
    assert torch.equal(out.latents[:, 0, 0], ops.euler_step(out.branches[:, 2, 0], last, table, 3))
    assert torch.equal(out.latents[:, 0], out.latents[:, 2])


def test_trajectories_may_be_noisy_at_different_steps():
    some = Branches(2, torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2]), torch.ones(3).long(), torch.ones(3).double())
    out, every = drawn(some), drawn(Branches.everywhere(2, {0: 1, 1: 1, 2: 1}))
    assert torch.equal(out.flat_branches[1], every.branches[1, 0, 0])
    assert not torch.equal(out.flat_latents[0], every.latents[0, 0, 0])


@pytest.mark.parametrize("max_batch", [1, 2, 3])
def test_pieces_change_nothing_but_rounding_and_are_handed_over_once(max_batch):
    found = []
    branches = Branches.everywhere(5, {0: 1, 2: 1})
    out = drawn(branches, max_batch=max_batch, finished=lambda latents, rows: found.append((latents.clone(), rows)))
    torch.testing.assert_close(out.flat_latents, drawn(branches).flat_latents)
    assert torch.equal(torch.cat([rows for _, rows in found]), torch.arange(5))
    assert torch.equal(torch.cat([latents for latents, _ in found]), out.latents[:, 0, 0])


def test_one_reward_belongs_to_all_steps(monkeypatch):
    seen = {}
    original = step.update

    def spy(policy, rollout, advantages, *rest):
        seen["advantages"] = advantages.view(12, 3)
        return original(policy, rollout, advantages, *rest)

    monkeypatch.setattr(step, "update", spy)
    policy = TinyPolicy()
    metrics = tff.grpo_step(policy, PROMPTS, brightness, sgd(policy), CONFIG)
    advantages = seen["advantages"]
    assert torch.equal(advantages, advantages[:, :1].expand(-1, 3))
    torch.testing.assert_close(advantages[:, 0].view(3, 4).mean(1), torch.zeros(3, dtype=advantages.dtype))
    assert metrics["num_row_evaluations"] == 12 * 4


def test_the_geometry_counts_what_runs():
    policy = TinyPolicy()
    metrics = tff.grpo_step(policy, PROMPTS, brightness, sgd(policy), CONFIG)
    geometry = Geometry(CONFIG, len(PROMPTS))
    assert (geometry.rollout_rows, geometry.rollout_calls) == (metrics["num_row_evaluations"], metrics["num_calls"])
    cost = geometry.costs()[0]
    assert (cost.images, cost.trained) == (12, 36)


def test_a_chain_learns():
    policy = TinyPolicy(width=64)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    config = dataclasses.replace(CONFIG, num_seeds=12, noise_weighting=False)
    scores = [tff.grpo_step(policy, PROMPTS, brightness, optimizer, config, seed=i)["reward_mean"] for i in range(60)]
    assert sum(scores[-5:]) > sum(scores[:5]) + 0.25


def test_equal_weights():
    table = tff.step_table(tff.linear_sigmas(4), branch_steps=(0, 2))
    assert table.with_equal_weights().noise_weight.tolist() == [1, 0, 1, 0]
    assert table.with_equal_weights().coefficients()[:, 4].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_branches": 2}, 'num_branches must be 1 with trunk "sde", got 2'),
        ({"group": "seed"}, "group must be 'prompt' with trunk \"sde\", got 'seed'"),
        ({"tail_steps": 1}, 'tail_steps must be None, like the other settings of tails, with trunk "sde", got 1'),
        ({"cuda_graphs": True}, 'cuda_graphs must be False with trunk "sde", got True'),
        ({"num_seeds": 1}, "num_branches must be enough for a group"),
        ({"trunk": "both"}, "trunk must be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
