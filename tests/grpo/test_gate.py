"""The gate: which branches are finished twice, what is compared, and what training sees of it."""

from __future__ import annotations

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo import acting
from tempflow_fast.grpo.branches import Branches
from tempflow_fast.grpo.gate import checked_rows, gate_metrics, gated_trajectories, rank_correlation
from tempflow_fast.grpo.geometry import Geometry

CHEAP = {"num_steps": 6, "num_seeds": 2, "num_branches": 3, "tail_steps": 2, "gate_every": 2}


def test_a_gate_takes_trajectories_in_turn():
    config = GRPOConfig(num_steps=6, tail_steps=2, gate_every=3, gate_share=0.4)
    assert [gated_trajectories(config, 5, (7 << 32) + index) for index in range(4)] == [[0, 1], [], [], [2, 3]]
    assert gated_trajectories(config, 5, 6) == [0, 4]
    grouped = GRPOConfig(num_steps=6, tail_steps=2, gate_every=3, gate_share=0.4, group="prompt", num_seeds=2)
    assert gated_trajectories(grouped, 6, 3) == [0, 1, 4, 5]
    assert gated_trajectories(GRPOConfig(), 5, 0) == []


def test_the_checked_branches_of_a_process():
    branches = Branches.everywhere(4, {0: 2, 1: 1})
    checked = branches.rows_of([1, 3])
    assert checked.tolist() == [3, 4, 5, 9, 10, 11]
    assert checked_rows(branches, [0, 2], checked).tolist() == []
    assert checked_rows(branches, [0, 3], checked).tolist() == [3, 4, 5]


def test_checked_branches_are_those_of_the_full_tail():
    policy = TinyPolicy(torch.float64)
    table, noise = tff.step_table(policy.sigmas(6)), torch.randn(3, 3, 2, 2, dtype=torch.float64)
    arguments = (policy, policy.encode(PROMPTS), table, noise, 3)
    tails = acting.tails_of(GRPOConfig(num_steps=6, tail_steps=2, tail_solver="ab2"), table)
    finished = []
    drawn = tff.rollout(
        *arguments,
        tails=tails,
        checked=torch.tensor([1, 20, 44]),
        on_finished=lambda x, rows: finished.append((x, rows)),
    )
    full, cheap = tff.rollout(*arguments), tff.rollout(*arguments, tails=tails)
    torch.testing.assert_close(drawn.checked_latents, full.flat_latents[[1, 20, 44]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(drawn.flat_latents, cheap.flat_latents, rtol=1e-12, atol=1e-12)
    latents, rows = (torch.cat(parts) for parts in zip(*finished, strict=True))
    assert sorted(rows.tolist()) == list(range(45 + 3))
    assert torch.equal(latents, torch.cat([drawn.flat_latents, drawn.checked_latents])[rows])
    assert drawn.num_calls == 6


def test_what_is_compared():
    branches = Branches(2, torch.tensor([0, 0, 1]), torch.tensor([0, 2, 2]), torch.tensor([2, 3, 2]), torch.ones(3))
    cheap, full = torch.tensor([1.0, 2, 3, 1, 2, 0, 1]), torch.tensor([1.0, 2, 1, 3, 2, 5, 5])
    ours, theirs = torch.tensor([-1.0, 1, 1, -1, 0, -1, 1]), torch.tensor([-1.0, 1, -1, 1, 0, 0, 0])
    found = {name: float(value) for name, value in gate_metrics((cheap, full), (ours, theirs), branches).items()}
    assert found == pytest.approx(
        {
            "gate_cosine": (2 - 2) / (6 * 4) ** 0.5,
            "gate_cosine_step_0": 1.0,
            "gate_cosine_step_2": -2 / (4 * 2) ** 0.5,
            "gate_sign_agreement": 0.5,
            "gate_rank_correlation": (1 - 1) / 2,
            "gate_reward_bias": (cheap - full).mean().item(),
        }
    )
    zero = torch.zeros(7)
    assert list(gate_metrics((cheap, full), (ours, zero), branches)) == ["gate_rank_correlation", "gate_reward_bias"]


def test_ranks_with_ties():
    left = torch.tensor([[1.0, 2, 3, 4], [1, 1, 2, 3], [1, 1, 1, 1]])
    right = torch.tensor([[4.0, 3, 2, 1], [1, 2, 2, 3], [1, 2, 3, 4]])
    # Ranks 0.5 0.5 2 3 and 0 1.5 1.5 3 around 1.5: products 1.5 0 0 2.25 over norms of sqrt(4.5).
    assert rank_correlation(left, right)[:2].tolist() == pytest.approx([-1.0, 3.75 / 4.5])
    assert rank_correlation(left, right)[2].isnan()


@pytest.mark.parametrize("group", ["seed", "prompt"])
def test_an_iteration_with_a_gate_trains_as_one_without(group, monkeypatch):
    """The same advantages and images, and a comparison of those of the full tail."""
    seen = {}
    for name, settings in (("with", CHEAP), ("without", CHEAP | {"gate_every": None}), ("full", {"num_steps": 6})):
        policy = TinyPolicy(torch.float64)
        real = acting.advantages_of
        calls = []

        def noting(*arguments, real=real, calls=calls):
            calls.append(real(*arguments))
            return calls[-1]

        with monkeypatch.context() as patch:
            patch.setattr(acting, "advantages_of", noting)
            config = GRPOConfig(**{"num_seeds": 2, "num_branches": 3, "group": group, "gate_share": 0.5, **settings})
            metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy, 0.0), config, seed=2)
        seen[name] = (calls, metrics)
    (ours, _, theirs), metrics = seen["with"]
    (alone,), plain = seen["without"]
    (full,), _ = seen["full"]
    torch.testing.assert_close(ours, alone, rtol=1e-6, atol=1e-6)
    assert metrics["reward_mean"] == pytest.approx(float(plain["reward_mean"]), rel=1e-6)
    assert metrics["image_diversity"] == pytest.approx(float(plain["image_diversity"]), rel=1e-5)
    rows = Branches.everywhere(6, dict.fromkeys(range(5), 3)).rows_of(gated_trajectories(config_of(group), 6, 2))
    torch.testing.assert_close(theirs, full[rows], rtol=1e-4, atol=1e-4)
    expected = ours[rows].dot(full[rows]) / (ours[rows].norm() * full[rows].norm())
    assert float(metrics["gate_cosine"]) == pytest.approx(float(expected), rel=1e-4)
    assert not [name for name in plain if name.startswith("gate_")]


def config_of(group):
    return GRPOConfig(**{**CHEAP, "group": group, "gate_share": 0.5})


def test_a_gate_costs_what_the_geometry_says():
    config = GRPOConfig(**CHEAP, max_batch=7, gate_share=0.3)
    rows, images = Geometry(config, 3).gate
    costs = {}
    for seed in (2, 3):
        policy, drawn = TinyPolicy(), []
        reward = lambda x, *texts, drawn=drawn: drawn.append(len(x)) or brightness(x, *texts)  # noqa: E731
        metrics = grpo_step(policy, PROMPTS, reward, sgd(policy), config, seed)
        costs[seed] = (float(metrics["num_row_evaluations"]), sum(drawn))
    assert rows == 2 * 3 * (5 + 4 + 3 + 2 + 1)
    assert (costs[2][0] - costs[3][0], costs[2][1] - costs[3][1]) == (rows, images)
    assert images == 2 * 5 * 3
    assert f"every 2 iterations, a gate adds {rows} rows and {images} images" in str(Geometry(config, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate_every": 0, "tail_steps": 1}, "gate_every must be >= 1 or None"),
        ({"gate_every": 5}, "gate_every must be None where tails are the full ones"),
        ({"gate_share": 0.0}, r"gate_share must be in \(0, 1\]"),
        ({"gate_bound": 2.0}, "gate_bound must be a cosine"),
        ({"gate_action": "stop"}, "gate_action must be"),
    ],
)
def test_impossible_gates_are_named(settings, message):
    with pytest.raises(ValueError, match=f"GRPOConfig: {message}"):
        GRPOConfig(num_steps=5, **settings)
