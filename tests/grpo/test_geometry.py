"""The work geometry against what an iteration really does."""

from __future__ import annotations

import pytest
import torch
from support.processes_worker import CASES
from support.tiny import PROMPTS, TinyPolicy, brightness

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo.geometry import Geometry


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_updates": 3, "micro_batch": 4, "max_batch": 5, "beta": 0.1},
        {"branch_steps": (2, 0), "num_branches": 2, "num_seeds": 3, "num_updates": 1},
        {"branch_steps": (3,), "max_batch": 2},
    ],
)
def test_one_process_does_what_the_geometry_says(settings):
    config = GRPOConfig(**{"num_steps": 4, "num_branches": 3, "num_seeds": 2, **settings})
    geometry, policy, images = Geometry(config, len(PROMPTS)), TinyPolicy(), []
    metrics = grpo_step(
        policy,
        PROMPTS,
        lambda drawn, *texts: images.append(len(drawn)) or brightness(drawn, *texts),
        torch.optim.SGD(policy.parameters(), lr=0.1),
        config,
    )
    (work,), (ours, scripts, _) = geometry.work, geometry.costs()
    assert metrics["num_calls"] == geometry.rollout_calls
    assert metrics["num_row_evaluations"] == ours.rollout == scripts.rollout
    assert sum(images) == ours.images == work.num_images
    trained = [rows for rows, with_graph in policy.calls if with_graph]
    assert sum(trained) == ours.trained == sum(work.pairs) == scripts.trained / config.num_branches
    assert len(trained) == sum(geometry.training_calls)
    forward = [rows for rows, with_graph in policy.calls[geometry.rollout_calls :] if not with_graph]
    # The tiny policy's reference is a call like any other.
    assert sum(forward) == ours.extra


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_work_of_all_processes_adds_up(case, num_processes):
    _, prompts, _, config = CASES[case]
    geometry = Geometry(config, len(prompts), num_processes)
    alone = Geometry(config, len(prompts)).work[0]
    parts = geometry.work
    assert sorted(n for work in parts for n in work.trajectories) == list(alone.trajectories)
    assert [sum(pairs) for pairs in zip(*(work.pairs for work in parts), strict=True)] == list(alone.pairs)
    assert sum(work.num_images for work in parts) == alone.num_images
    assert len({work.num_carried for work in parts}) == 1


def test_costs_of_the_public_setting():
    """The counts that the paper's setting is known by: 279 rows per noise against 60 for a Flow-GRPO group of six."""
    ours, scripts, flow = Geometry(GRPOConfig(num_seeds=1, num_updates=1), 1).costs()
    assert (ours.rollout, ours.trained, ours.images) == (279, 9, 54)
    assert (scripts.rollout, scripts.trained, scripts.images) == (279, 54, 54)
    assert (flow.rollout, flow.trained, flow.images) == (60, 54, 6)
    assert (ours.total, scripts.total) == (279 + 27, 279 + 162)


def test_flow_grpo_trains_all_steps_whichever_have_branches():
    flow = Geometry(GRPOConfig(num_seeds=1, num_updates=1, branch_steps=(1, 2)), 1).costs()[2]
    assert (flow.rollout, flow.trained, flow.images) == (60, 54, 6)


def test_page_names_every_process_and_its_part():
    page = str(Geometry(GRPOConfig(num_seeds=1, guidance_scale=4.5), 7, 3))
    rows = {line.split()[0]: line for line in page.splitlines() if line}
    # Update 0 has trajectories 0, 2, 4, 6, update 1 has 1, 3, 5; dealt in this order.
    assert [rows[process].split(":")[1].split("  ")[0].strip() for process in "012"] == ["0, 5, 6", "1, 2", "3, 4"]
    assert "guidance evaluates every row twice" in page
    assert "guidance" not in str(Geometry(GRPOConfig(num_seeds=1, guidance_scale=0.5), 7, 3))
    assert "and 92 more" in str(Geometry(GRPOConfig(), 7, 100))
    # Of T = 4 and K = 6, tails have sigma 0.75, 0.5, 0.25; at 0.25 all three branch steps have rows.
    tails = {"num_steps": 4, "num_seeds": 1, "num_updates": 1, "guidance_scale": 4.5, "tail_guidance": (0.4, 1.0)}
    assert f"every row but {6 * 3} of tails twice" in str(Geometry(GRPOConfig(**tails), 1))


@pytest.mark.parametrize(
    ("settings", "means"),
    [
        ({"tail_steps": 2, "branch_steps": (1, 2, 3, 4)}, (53, 24, 4)),
        ({}, (279, 54, 9)),
        # The last step is 2, 5 or 8.
        ({"branches_per_trajectory": 3, "branch_draw": "rotating"}, (6 + 6 * 45 / 3, 18, 3)),
        # Every third step of nine, so that the last one is 6, 7 or 8.
        ({"branches_per_trajectory": 3}, (8 + 6 * 45 / 3, 18, 3)),
        ({"num_branches": (6, 6, 8, 10, 0, 0, 0, 0, 0)}, (4 + 6 * 9 + 6 * 8 + 8 * 7 + 10 * 6, 30, 4)),
    ],
)
def test_the_page_has_means_per_trajectory(settings, means):
    config = GRPOConfig(num_steps=10, num_seeds=1, num_updates=1, **settings)
    (line,) = [line for line in str(Geometry(config, 1)).splitlines() if line.startswith("all")]
    assert tuple(map(float, line.split()[1:])) == means
    num = 30
    rollouts = [Geometry(config, num, seed=seed).costs()[0].rollout for seed in range(3)]
    assert sum(rollouts) / 3 / num == pytest.approx(means[0], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GRPOConfig(), 0), "num_prompts must be >= 1, got 0"),
        ((GRPOConfig(), 3, 0), "num_processes must be >= 1, got 0"),
        ((GRPOConfig(num_updates=5), 1), "num_updates must be at most the 4 trajectories, got 5"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=f"Geometry: {message}"):
        Geometry(*arguments)
