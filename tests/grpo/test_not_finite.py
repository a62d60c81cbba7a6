"""What is infinite or NaN is neither learned from nor scored: skipped updates, and errors that name the cause."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from support.pipelines import sd3_pipeline
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.errors import NotFiniteError
from tempflow_fast.grpo.update import _nan_unless_finite
from tempflow_fast.policies import SD3Policy
from tempflow_fast.policies.finite import all_finite
from tempflow_fast.rewards import RewardError
from tempflow_fast.run.average import WeightAverage

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3}
OPTIMIZERS = {
    "sgd with momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "fused sgd with momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5, fused=True),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5),
    "fused adamw": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5, fused=True),
}


def snapshot(policy, optimizer, average):
    return copy.deepcopy(([*policy.parameters(), *average.weights], optimizer.state_dict()["state"]))


def spoil(policy, backward_numbers, value=torch.nan):
    """Puts `value` into the gradient of one weight in the given backward passes, counted from 0."""
    count = iter(range(10**6))
    policy.parameters()[0].register_hook(
        lambda gradient: gradient.index_fill(0, torch.tensor([0]), value) if next(count) in backward_numbers else None
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_update_that_is_not_finite_changes_nothing(make, value):
    """1e30 is finite, but its square is not, and neither is the norm by which the gradient would be divided."""
    policy = TinyPolicy()
    optimizer = make(policy.parameters())
    average = WeightAverage(policy, optimizer, decay=0.9, every=1)
    config = GRPOConfig(**SMALL, num_updates=2)
    assert grpo_step(policy, PROMPTS, brightness, optimizer, config)["skipped_updates"] == 0
    (weights, state), _ = snapshot(policy, optimizer, average), spoil(policy, range(2), value)
    metrics = grpo_step(policy, PROMPTS, brightness, optimizer, config, seed=1)
    assert metrics["skipped_updates"] == 2
    assert all(metrics[name].isnan() for name in ("loss", "grad_norm", "kl", "clip_fraction", "log_ratio_rms"))
    after, after_state = snapshot(policy, optimizer, average)
    assert all(map(torch.equal, weights, after))
    assert str(state) == str(after_state)
    assert grpo_step(policy, PROMPTS, brightness, optimizer, config, seed=2)["skipped_updates"] == 0


@pytest.fixture
def unwritten_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_first_update_that_is_not_finite_leaves_no_trace(unwritten_is_nan, make):
    """torch's fused SGD makes its momenta in the first step, and leaves them unwritten where it is to do nothing."""
    config, found = GRPOConfig(**SMALL, num_updates=1), []
    for spoiled in (True, False):
        policy = TinyPolicy()
        optimizer = make(policy.parameters())
        if spoiled:
            spoil(policy, range(1))
            assert grpo_step(policy, PROMPTS, brightness, optimizer, config)["skipped_updates"] == 1
        for seed in (1, 2):
            assert grpo_step(policy, PROMPTS, brightness, optimizer, config, seed=seed)["skipped_updates"] == 0
        found.append(policy.parameters())
    assert all(map(torch.equal, *found))


def test_the_means_are_those_of_the_updates_that_were_taken():
    policy, config = TinyPolicy(), GRPOConfig(**SMALL, num_updates=3)
    spoil(policy, [1])
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy), config)
    assert metrics["skipped_updates"] == 1
    assert metrics["signal_fraction"] == 1
    assert all(metrics[name].isfinite() for name in ("loss", "grad_norm", "kl", "clip_fraction", "log_ratio_rms"))
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize(("loss", "finite"), [(2.5, True), (torch.inf, False), (torch.nan, False)])
def test_a_loss_that_is_not_finite_shows_in_the_gradient(loss, finite):
    weight = torch.tensor(1.0, requires_grad=True)
    value = 3 * weight + torch.tensor(loss)
    (value * _nan_unless_finite(value)).backward()
    assert weight.grad.isfinite() == finite
    assert weight.grad == 3 or not finite


class BadDecoder(TinyPolicy):
    def decode(self, latents):
        return super().decode(latents) * torch.where(torch.arange(len(latents)) == 5, torch.nan, 1.0).view(-1, 1, 1, 1)


class BadVelocity(TinyPolicy):
    """Infinite velocities make infinite latents, of which this decoder makes white images."""

    def velocity(self, *inputs):
        velocity, uncond = super().velocity(*inputs)
        return velocity * 1e38 * 10, uncond


def bad_weights():
    policy = TinyPolicy()
    policy.parameters()[0].data[3] = torch.nan
    return policy


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (BadDecoder, r"image 5 \(prompt 'a red circle'\) is not finite: its latents are finite, but the decoder"),
        (BadVelocity, r"image 0 .* the velocity of the policy overflows or is NaN, while its weights \(float32\)"),
        (bad_weights, r"image 0 .* weights of the policy are infinite or NaN"),
    ],
    ids=["decoder", "velocity", "weights"],
)
@pytest.mark.parametrize("max_batch", [None, 7])
def test_images_that_are_not_finite_are_an_error_before_a_reward_sees_them(make, message, max_batch):
    def reward(images, prompts, metadata):
        seen.extend(images)
        return torch.zeros(len(images))

    seen, policy = [], make()
    with pytest.raises(NotFiniteError, match=message):
        grpo_step(policy, PROMPTS, reward, sgd(policy), GRPOConfig(**SMALL, max_batch=max_batch))
    assert all(image.isfinite().all() for image in seen)


@pytest.mark.parametrize("overflow", [torch.inf, -torch.inf, torch.nan])
def test_an_overflow_of_the_decoder_does_not_become_white_or_black(overflow, tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    policy.pipeline.vae.decoder.conv_out.bias.data[1] = overflow
    images = policy.decode(torch.zeros(2, *policy.latent_shape))
    assert images[:, 1].isnan().all()
    assert images[:, 0].isfinite().all()


@pytest.mark.parametrize(
    ("score", "message"),
    [(1e308, "rewards must be of a spread that float64 can square"), (1e200, "can square")],
)
def test_rewards_too_far_apart_are_an_error(score, message):
    policy = TinyPolicy()
    far = lambda images, prompts, metadata: score * (-1.0) ** torch.arange(len(images), dtype=torch.float64)  # noqa: E731
    with pytest.raises(ValueError, match=message):
        grpo_step(policy, PROMPTS, far, sgd(policy), GRPOConfig(**SMALL))


def test_a_weighted_sum_that_overflows_is_an_error():
    policy = TinyPolicy()
    huge = lambda images, prompts, metadata: torch.full((len(images),), 1e308, dtype=torch.float64)  # noqa: E731
    rewards = {"first": {"reward": huge}, "second": {"reward": huge}}
    with pytest.raises(RewardError, match=r'reward "first\+second" failed on sample 0 .*: the sum overflows'):
        grpo_step(policy, PROMPTS, rewards, sgd(policy), GRPOConfig(**SMALL))


def test_only_floating_point_numbers_can_be_other_than_finite():
    assert all_finite([torch.tensor([1, 2]), torch.zeros(0), torch.tensor(3.0, dtype=torch.bfloat16)])
    assert not all_finite([torch.ones(2), torch.tensor([0.0, torch.nan])])
    assert not all_finite([torch.tensor([[-torch.inf]], dtype=torch.float64)])
