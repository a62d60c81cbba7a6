"""One whole iteration: exactness, reproducibility, updates, cost, and errors before work is lost."""

from __future__ import annotations

import math

import pytest
import torch
from support.pipelines import sd3_pipeline
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo.update import update
from tempflow_fast.policies import SD3Policy
from tempflow_fast.rewards import RewardError

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3}
STAGES = {f"seconds_{stage}" for stage in ("encode", "rollout", "decode", "reward", "reward_busy", "train")}


def weights(policy):
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


@pytest.fixture(scope="module")
def sd3_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sd3")
    SD3Policy(sd3_pipeline(directory / "tokenizer")).save(directory / "pipeline")
    return directory / "pipeline"


@pytest.mark.parametrize("micro_batch", [None, 1, 4])
@pytest.mark.parametrize(("max_batch", "guidance_scale"), [(None, 1.0), (1, 3.0), (7, 4.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["perceptron", "sd3"])
def test_unchanged_policy_has_log_ratio_exactly_zero(
    kind, dtype, max_batch, guidance_scale, micro_batch, sd3_directory
):
    policy = TinyPolicy(dtype) if kind == "perceptron" else SD3Policy.from_pretrained(sd3_directory, dtype=dtype)
    settings = {"max_batch": max_batch, "micro_batch": micro_batch, "guidance_scale": guidance_scale, "beta": 0.1}
    config = GRPOConfig(**SMALL, num_updates=2, **settings)
    metrics = grpo_step(policy, PROMPTS[:2], brightness, sgd(policy, lr=0.0), config)
    assert metrics["signal_fraction"] == 1
    assert metrics["grad_norm"] > 0
    assert metrics["log_ratio_rms"] == metrics["clip_fraction"] == metrics["kl"] == 0


def test_second_update_sees_the_first():
    policy = TinyPolicy()
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy), GRPOConfig(**SMALL, num_updates=2, beta=0.1))
    assert min(metrics[name] for name in ("log_ratio_rms", "clip_fraction", "kl")) > 0


@pytest.mark.parametrize("group", ["seed", "prompt"])
def test_same_seed_gives_the_same_metrics_twice(group):
    config = GRPOConfig(**SMALL, group=group, max_batch=5, micro_batch=4, beta=0.1)
    runs = []
    for seed in (3, 3, 4):
        policy = TinyPolicy()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
        history = [grpo_step(policy, PROMPTS, brightness, optimizer, config, seed=seed + 10 * i) for i in range(2)]
        assert history[0].keys() >= STAGES
        numbers = [{name: float(metrics[name]) for name in metrics.keys() - STAGES} for metrics in history]
        runs.append((numbers, weights(policy).tolist()))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("num_updates", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_accumulated_micro_batches_equal_the_big_batch(micro_batch, num_updates):
    results = []
    for size in (None, micro_batch):
        policy = TinyPolicy(torch.float64)
        table = tff.step_table(policy.sigmas(4))
        noise = torch.randn(3, *policy.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        drawn = tff.rollout(policy, policy.encode(PROMPTS), table, noise, 3)
        advantages = torch.randn(3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        advantages[1, 1] = 0
        config = GRPOConfig(num_updates=num_updates, micro_batch=size, clip_range=1e-2, beta=0.01)
        metrics = update(policy, drawn, advantages, sgd(policy), config)
        results.append((weights(policy), torch.stack([metrics[name].double() for name in sorted(metrics)])))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


def test_updates_take_whole_trajectories_and_cost_one_forward_each():
    policy = TinyPolicy()
    config = GRPOConfig(**SMALL, num_updates=2, micro_batch=4)
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy), config)
    training = policy.calls[int(metrics["num_calls"]) :]
    # 6 trajectories, 3 branch steps: 9 pairs per update, the second one evaluated before the first begins.
    assert training == [(3, False)] * 3 + [(3, True)] * 6
    assert metrics["num_row_evaluations"] == 6 * (3 + 3 * (3 + 2 + 1))


def test_training_may_leave_the_guidance_to_the_rollout():
    class Noting(TinyPolicy):
        def velocity(self, latents, sigma, condition, guidance_scale=1.0):
            scales.append(guidance_scale)
            return super().velocity(latents, sigma, condition, guidance_scale)

    for guided_training, scale in ((True, 3.0), (False, 1.0)):
        scales, policy = [], Noting()
        config = GRPOConfig(**SMALL, num_updates=2, guidance_scale=3.0, guided_training=guided_training, beta=0.1)
        metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy, lr=0.0), config)
        num_calls = int(metrics["num_calls"])
        assert set(scales[:num_calls]) == {3.0}
        # Per update a reference and a training forward, and the acting velocity of the second one.
        assert scales[num_calls:] == [scale] * 5
        assert metrics["log_ratio_rms"] == metrics["kl"] == 0
        assert metrics["grad_norm"] > 0


def test_equal_rewards_run_no_training_forward():
    policy = TinyPolicy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1.0, weight_decay=0.5)
    before = weights(policy)
    constant = lambda images, prompts, metadata: torch.full((len(images),), 0.1)  # noqa: E731
    metrics = grpo_step(policy, PROMPTS, constant, optimizer, GRPOConfig(**SMALL))
    assert len(policy.calls) == metrics["num_calls"]
    assert torch.equal(weights(policy), before)
    assert metrics["signal_fraction"] == metrics["loss"] == metrics["grad_norm"] == 0


def test_rows_without_signal_still_count_in_the_mean():
    """Padding a batch with a trajectory that carries no signal divides the step by the larger number of rows."""
    steps = []
    for num in (1, 2):
        policy = TinyPolicy(torch.float64)
        table = tff.step_table(policy.sigmas(4))
        noise = torch.ones(num, *policy.latent_shape, dtype=torch.float64)
        drawn = tff.rollout(policy, policy.encode(PROMPTS[:1] * num), table, noise, 3)
        advantages = torch.zeros(num, 3, 3, dtype=torch.float64)
        advantages[0] = torch.tensor([1.0, 0.0, -1.0])
        before = weights(policy)
        update(policy, drawn, advantages, sgd(policy), GRPOConfig(num_updates=1, max_grad_norm=math.inf))
        steps.append(weights(policy) - before)
    torch.testing.assert_close(steps[1], steps[0] / 2)


def test_gradients_are_clipped():
    moved = {}
    for limit in (1e-3, math.inf):
        policy = TinyPolicy()
        before = weights(policy)
        config = GRPOConfig(**SMALL, num_updates=1, max_grad_norm=limit)
        norm = grpo_step(policy, PROMPTS, brightness, sgd(policy, lr=1.0), config)["grad_norm"]
        moved[limit] = (weights(policy) - before).norm()
    assert norm > 1e-2
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[math.inf] == pytest.approx(norm.item(), rel=1e-4)


class DecidingSGD(torch.optim.SGD):
    """Like torch's fused optimizers, which do not run on the meta device, it reads itself whether to do nothing."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                weight -= group["lr"] * torch.where(self.found_inf > 0, 0, weight.grad)


def test_no_step_waits_for_the_device():
    """On the meta device no number can be read back, so a rollout and an update that end there asked for none."""
    policy = TinyPolicy()
    policy.network.to("meta")
    table = tff.step_table(policy.sigmas(4))
    condition = policy.encode(PROMPTS).to("meta")
    noise = torch.empty(3, *policy.latent_shape, device="meta")
    drawn = tff.rollout(policy, condition, table, noise, 3, max_batch=4)
    optimizer = DecidingSGD(policy.parameters(), lr=0.1)
    metrics = update(policy, drawn, torch.randn(3, 3, 3), optimizer, GRPOConfig(micro_batch=4, beta=0.1))
    assert drawn.latents.shape == (3, 3, 3, *policy.latent_shape)
    assert metrics["loss"].is_meta


def test_metadata_and_prompts_reach_the_reward_image_by_image():
    seen = {}

    def reward(images, prompts, metadata):
        seen.update(shape=images.shape, prompts=prompts, metadata=metadata)
        return brightness(images, prompts, metadata)

    policy = TinyPolicy()
    extras = [{"tag": index} for index in range(3)]
    grpo_step(policy, PROMPTS, reward, sgd(policy), GRPOConfig(**SMALL), metadata=extras)
    per_prompt = 2 * 3 * 3
    assert seen["shape"] == (3 * per_prompt, 3, 2, 2)
    # In the order [B, N, K]: at each of three steps, each prompt has two seeds of three branches.
    assert seen["prompts"] == 3 * [prompt for prompt in PROMPTS for _ in range(2 * 3)]
    assert seen["metadata"] == 3 * [entry for entry in extras for _ in range(2 * 3)]


@pytest.mark.parametrize(
    ("scored", "group", "signal", "spread"),
    [("seed", "seed", 0, 0.0), ("seed", "prompt", 1, 0.05), ("prompt", "prompt", 0, 0.0)],
)
def test_groups_are_compared_within_themselves_only(scored, group, signal, spread):
    """Rewards that differ between seeds (prompts) alone tell nothing to groups of one seed (one prompt)."""
    seeds_per_score = {"seed": 1, "prompt": 2}[scored]

    def reward(images, prompts, metadata):
        trajectories = torch.arange(len(images)) // 3 % 6
        return trajectories // seeds_per_score * 0.1

    policy = TinyPolicy()
    metrics = grpo_step(policy, PROMPTS, reward, sgd(policy), GRPOConfig(**SMALL, group=group))
    assert metrics["signal_fraction"] == signal
    for name in ("group_std", "group_std_step_0", "group_std_step_2"):
        assert metrics[name].item() == pytest.approx(spread, abs=1e-7)


@pytest.mark.parametrize("draw", [{}, {"branches_per_trajectory": 1, "branch_draw": "random"}])
def test_the_spread_of_noisy_trajectories_is_that_of_a_prompt(draw):
    """Four images of each prompt have the rewards 0, 0.1, 0.2 and 0.3, one for all steps of a trajectory."""
    policy = TinyPolicy()
    config = GRPOConfig(num_steps=4, num_seeds=4, trunk="sde", num_branches=1, group="prompt", **draw)
    order = {prompt: len(prompt) for prompt in PROMPTS}

    def reward(images, prompts, metadata):
        return torch.tensor([order[prompt] + 0.1 * (row % 4) for row, prompt in enumerate(prompts)])

    metrics = grpo_step(policy, PROMPTS, reward, sgd(policy), config)
    assert metrics["group_std"].item() == pytest.approx(0.1 * 1.25**0.5, rel=1e-4)
    assert not any(name.startswith("group_std_step") for name in metrics)


def test_reward_rises_on_a_task_that_can_be_learned():
    policy = TinyPolicy(width=64)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    config = GRPOConfig(num_steps=4, num_seeds=4, num_branches=6)
    scores = [grpo_step(policy, PROMPTS, brightness, optimizer, config, seed=i)["reward_mean"] for i in range(60)]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, r"grpo_step: prompts must be .* got \[\]"),
        ({"prompts": "a red circle"}, "grpo_step: prompts must be .* got 'a red circle'"),
        ({"metadata": [{}]}, "grpo_step: metadata must be a list of 3 entries like prompts, got 1"),
        ({"config": GRPOConfig(**SMALL, num_updates=7)}, "num_updates must be at most the 6 trajectories, got 7"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)])}, "optimizer must be .* with 0 of 4"),
    ],
)
def test_errors_come_before_any_network_call(changes, message):
    policy = TinyPolicy()
    arguments = {"prompts": PROMPTS, "reward_fn": brightness, "optimizer": sgd(policy), "config": GRPOConfig(**SMALL)}
    with pytest.raises(ValueError, match=message):
        grpo_step(policy, **{**arguments, **changes})
    assert not policy.calls


def test_an_optimizer_of_some_weights_needs_the_others_frozen():
    """Else nothing clears their gradients, and clipping divides by a norm that rises from update to update."""
    policy, norms = TinyPolicy(), []
    optimizer = torch.optim.SGD(policy.network[0].parameters(), lr=0.0)
    with pytest.raises(ValueError, match=r"optimizer must be .* requires_grad_\(False\) .* got one with 2 of 4"):
        grpo_step(policy, PROMPTS, brightness, optimizer, GRPOConfig(**SMALL))
    policy.network[2].requires_grad_(False)
    for _ in range(2):
        norms.append(grpo_step(policy, PROMPTS, brightness, optimizer, GRPOConfig(**SMALL))["grad_norm"])
    assert norms[0] == norms[1] > 0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda images: torch.zeros(len(images) - 1), r"scores must be \[54\], one per image, got \[53\]"),
        (lambda images: torch.zeros(len(images), 1), r"scores must be \[54\], one per image, got \[54, 1\]"),
        (
            lambda images: torch.full((len(images),), math.nan),
            r"sample 0 \(prompt .*\): score must be finite .* got nan",
        ),
    ],
)
def test_bad_rewards_leave_the_policy_alone(reward, message):
    policy = TinyPolicy()
    before = weights(policy)
    with pytest.raises(RewardError, match=message):
        grpo_step(policy, PROMPTS, lambda images, prompts, metadata: reward(images), sgd(policy), GRPOConfig(**SMALL))
    assert torch.equal(weights(policy), before)


@pytest.mark.parametrize(
    "setting",
    [
        {"num_steps": 0},
        {"num_updates": 0},
        {"micro_batch": 0},
        {"clip_range": 0.0},
        {"beta": -1.0},
        {"adv_eps": math.nan},
        {"adv_clip": 0.0},
        {"max_grad_norm": -1.0},
        {"guidance_scale": math.inf},
        {"group": "batch"},
        {"num_branches": 1},
        {"sampler": "ode"},
        {"sigmas": (1.0, 0.0)},
        {"branch_steps": (0, 10)},
        {"num_steps": 2, "sigmas": (0.5, 0.9, 0.0)},
    ],
    ids=lambda setting: list(setting)[-1],
)
def test_config_names_the_bad_setting(setting):
    with pytest.raises(ValueError, match=f"GRPOConfig: {list(setting)[-1]} must"):
        GRPOConfig(**setting)
