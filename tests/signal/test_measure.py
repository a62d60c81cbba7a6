"""The meter on a model whose gradients are known in closed form, and on one whose gradients training takes."""

from __future__ import annotations

import dataclasses
import math
from operator import mul

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd
from torch import nn

import tempflow_fast as tff
from tempflow_fast import GRPOConfig
from tempflow_fast.grpo.sketch import Sketch
from tempflow_fast.policies import Condition, NetworkPolicy
from tempflow_fast.rewards import get_reward
from tempflow_fast.settings.methods import with_method
from tempflow_fast.signal.estimates import Estimate
from tempflow_fast.signal.report import as_advice, as_text
from tempflow_fast.signal.sample import Sample, sample
from tempflow_fast.signal.summary import Recommendation, summarised

SHAPE = (3, 2, 2)
SIZE = 12
SLOPE = torch.linspace(-1, 1, SIZE)
WIDE = 1e6
"""Advantages are (r - mean) / (std + WIDE), so in proportion to the reward."""


class Drift(NetworkPolicy):
    """The velocity is the same vector everywhere, and it is the parameter."""

    latent_shape, dtype, device = SHAPE, torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__(nn.ParameterList([torch.zeros(SIZE)]))

    def encode(self, prompts, guided=False):
        return Condition({"text": torch.zeros(len(prompts), 1)})

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        return self.acting[0].view(SHAPE).expand_as(latents), None

    def decode(self, latents):
        return latents

    def sigmas(self, num_steps):
        return [1 - step / num_steps for step in range(num_steps + 1)]


def slope(images, prompts, metadata):
    return images.flatten(1) @ SLOPE


@pytest.mark.parametrize(("num_seeds", "num_branches"), [(3, 4), (6, 2)])
def test_a_linear_model_has_the_signal_of_the_closed_form(num_seeds, num_branches):
    """A group's gradient is S a times a constant: a is the slope and S the sample covariance of its normal draws.

    E S = (K - 1) / K, and S is a Wishart matrix, so the variance of S a is (K - 1) (D + 1) |a|^2 / K^2. The mean over N
    trajectories has an N-th of it: snr2 = N (K - 1) / (D + 1) at every step, with the same direction, and steps are
    independent.
    """
    config = GRPOConfig(
        num_steps=4, num_seeds=num_seeds, num_branches=num_branches, adv_eps=WIDE, adv_clip=WIDE, num_updates=1
    )
    report = tff.measure_signal(Drift(), ["x"], slope, config, num_iterations=80)
    truth = num_seeds * (num_branches - 1) / (SIZE + 1)
    (setting,) = report.settings
    for step in setting.steps:
        assert abs(step.snr2.value - truth) < 3.5 * step.snr2.error
        assert step.snr2.error < 0.35 * truth
    assert all(abs(report.correlations[a][b]) < 0.25 for a in range(3) for b in range(3) if a != b)


def test_drawn_steps_have_the_signal_of_the_closed_form():
    """An iteration draws one step per trajectory, so most steps are missing in many, and count as 0 there.

    A group's gradient G has |E G|^2 / E |G|^2 = 1 / 2 where K - 1 = D + 1. Step b is drawn with probability p and the
    weight 1 / (3 p): over N trajectories, snr2 = N |E G|^2 / (E |G|^2 / p - |E G|^2).
    """
    drawn = {"branches_per_trajectory": 1, "branch_probabilities": (2.0, 3.0, 5.0)}
    config = GRPOConfig(num_steps=4, num_seeds=2, num_branches=SIZE + 2, adv_eps=WIDE, adv_clip=WIDE, **drawn)
    (setting,) = tff.measure_signal(Drift(), ["x"], slope, config, num_iterations=80).settings
    assert [step.step for step in setting.steps] == [0, 1, 2]
    for step, probability in zip(setting.steps, (0.2, 0.3, 0.5), strict=True):
        assert abs(step.snr2.value - 2 / (2 / probability - 1)) < 3.5 * step.snr2.error < 0.5
    # The sum of all steps has the expectation of a sample without draws, and its variance is that of equal weights.
    second_moment = 2 * sum((1 / 3) ** 2 / p for p in (0.2, 0.3, 0.5))
    assert abs(setting.snr2.value - 2 / (second_moment - 1)) < 3.5 * setting.snr2.error < 2


IN_TURN = [
    GRPOConfig(num_steps=5, branches_per_trajectory=2, branch_draw="rotating"),
    with_method(GRPOConfig(num_steps=5), "mixgrpo"),
    with_method(GRPOConfig(num_steps=5), "flash"),
]


@pytest.mark.parametrize("config", IN_TURN, ids=lambda config: config.branch_draw)
def test_steps_that_take_turns_are_refused_before_anything_is_drawn(config):
    policy, prompts = TinyPolicy(), []
    settings = {"first": GRPOConfig(num_steps=5, num_seeds=1), "mine": config}
    message = f"measure_signal: branch_draw must be 'weighted' or 'random'.* got '{config.branch_draw}' in 'mine'"
    with pytest.raises(ValueError, match=message):
        tff.measure_signal(policy, lambda iteration: prompts.append(iteration), brightness, settings, 3)
    assert not policy.calls
    assert not prompts
    every = dataclasses.replace(config, branches_per_trajectory=len(config.branch_counts), num_updates=1)
    (setting,) = tff.measure_signal(policy, PROMPTS, brightness, every, 3).settings
    assert len(setting.steps) == 4


def test_the_parts_add_up_to_the_gradient_of_training():
    config = GRPOConfig(num_steps=4, num_seeds=2, num_branches=(2, 3, 2), num_updates=1, max_grad_norm=torch.inf)
    policy = TinyPolicy()
    before = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    entries = [{"prompt": prompt} for prompt in PROMPTS]
    found = sample(policy, entries, get_reward(brightness), config, 5, Sketch(len(before))).gradients
    assert sorted(found) == [0, 1, 2]
    assert all(parameter.grad is None for parameter in policy.parameters())
    tff.grpo_step(policy, PROMPTS, brightness, sgd(policy, 1.0), config, seed=5)
    after = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    torch.testing.assert_close(sum(found.values()), before - after, atol=1e-6, rtol=1e-4)


def test_a_signal_within_its_error_is_said_to_be_unresolved():
    rng = torch.Generator().manual_seed(0)

    def noise(images, prompts, metadata):
        return torch.rand(len(images), generator=rng)

    config = GRPOConfig(num_steps=4, num_seeds=1, num_updates=1)
    report = tff.measure_signal(TinyPolicy(), PROMPTS, noise, config, 6)
    assert not report.is_resolved
    assert "mean nothing yet" in as_text(report)
    sure = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, config, 30)
    assert sure.is_resolved
    assert "mean nothing yet" not in as_text(sure)


def test_gradients_that_were_there_are_kept():
    policy = TinyPolicy()
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    weights = [parameter.detach().clone() for parameter in policy.parameters()]
    tff.measure_signal(policy, PROMPTS, brightness, GRPOConfig(num_steps=3, num_seeds=1, num_updates=1), 3)
    for parameter, weight in zip(policy.parameters(), weights, strict=True):
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
        assert torch.equal(parameter, weight)


def test_a_setting_and_its_copy_are_equal_without_error():
    config = GRPOConfig(num_steps=4, num_seeds=2, num_updates=1)
    report = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, {"a": config, "b": config}, 4)
    first, second = report.settings
    assert first.snr2 == second.snr2
    assert second.relative.value == pytest.approx(1)
    assert second.relative.error < 1e-9
    assert second.iterations_to_tell is None or second.iterations_to_tell <= 4


def test_costs_are_those_of_the_rollout():
    config = GRPOConfig(num_steps=10, num_seeds=1, num_updates=1)
    report = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, config, 3)
    (setting,) = report.settings
    assert (setting.evaluations, setting.cost) == (279, 279 + 27)
    assert [step.cost for step in setting.steps] == [57, 51, 45, 39, 33, 27, 21, 15, 9]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"branch_steps": (1, 3)},
        {"trunk": "sde", "num_branches": 1, "num_seeds": 3, "group": "prompt"},
        {"branches_per_trajectory": 2},
        {"branches_per_trajectory": 2, "branch_draw": "random"},
    ],
)
def test_all_steps_together_cost_what_the_setting_costs(settings):
    config = GRPOConfig(**{"num_steps": 6, "num_seeds": 2, "num_updates": 1, **settings})
    (setting,) = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, config, 3).settings
    assert setting.cost_of(setting.steps) == pytest.approx(setting.cost)


def test_where_trajectories_take_all_steps_the_best_one_is_that_with_the_most_signal():
    """They cost the same, however late they are."""
    config = GRPOConfig(num_steps=6, num_seeds=4, num_updates=1, trunk="sde", num_branches=1, group="prompt")
    report = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, config, 3)
    (setting,) = report.settings
    signals = [dataclasses.replace(step, snr2=Estimate(1 + 0.01 * step.step, 0.1)) for step in setting.steps]
    advice = dataclasses.replace(report, settings=(dataclasses.replace(setting, steps=tuple(signals)),)).recommended()
    assert advice.branch_steps == (setting.steps[-1].step,)


def test_fewer_steps_count_along_the_direction_of_all():
    every = GRPOConfig(num_steps=5, num_seeds=2, num_updates=1)
    some = dataclasses.replace(every, branch_steps=(0, 1))
    first, second = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, {"all": every, "some": some}, 30).settings
    for own, reference in zip(second.steps, first.steps[:2], strict=True):
        assert own.snr2.value == pytest.approx(reference.snr2.value, rel=1e-4)
    assert math.isnan(second.seconds), "taken from the iterations of the first"
    assert second.effective.value <= second.snr2.value * 1.01
    assert second.per_evaluation.value == pytest.approx(second.relative.value * first.evaluations / second.evaluations)


def test_the_recommendation_gives_noisy_steps_more_branches():
    config = GRPOConfig(num_steps=4, num_seeds=2, num_updates=1)
    report = tff.measure_signal(
        Drift(), ["x"], slope, {"all": config, "last": dataclasses.replace(config, branch_steps=(2,))}, 20
    )
    advice = report.recommended(budget=200)
    (best,) = [setting for setting in report.settings if setting.name == advice.name]
    assert set(advice.branch_steps) <= {step.step for step in best.steps}
    assert sum(map(mul, advice.num_branches, advice.tail_steps)) <= 6 * sum(advice.tail_steps)
    alone = Recommendation.of(best, best.steps[-1:])
    assert str(alone) == "branch_steps=[2] num_branches=[6] tail_steps=[1]"
    noisy = [dataclasses.replace(step, variance=9.0 if step.step == 1 else 1.0) for step in report.settings[0].steps]
    # sqrt(variance / tail) is 0.58, 2.1 and 1, and the tails of 3, 2 and 1 calls may cost 6 (3 + 2 + 1).
    assert Recommendation.of(report.settings[0], noisy).num_branches == (3, 11, 5)
    chain = dataclasses.replace(report.settings[0], trunk="sde")
    assert str(Recommendation.of(chain, noisy)) == "branch_steps=[0,1,2]"


def test_iterations_to_tell_are_known_for_every_pair():
    config = GRPOConfig(num_steps=5, num_seeds=2, num_updates=1)
    some, other = (dataclasses.replace(config, branch_steps=steps) for steps in ((0, 1), (2, 3)))
    report = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, {"all": config, "a": some, "b": other}, 5)
    pairs = report.iterations_to_tell
    assert [row[0] for row in pairs] == [setting.iterations_to_tell for setting in report.settings]
    assert all((pairs[a][b] is None) == (a == b) for a in range(3) for b in range(3))
    best, second, _ = report.order
    assert report.settings[best].per_evaluation.value >= report.settings[second].per_evaluation.value
    assert f"Next: {report.settings[second].name}; " in as_advice(report) or not report.is_resolved


def test_what_is_kept_at_least_is_the_squared_correlation_with_the_same_steps():
    """Gradients at two of three steps, with independent noise of the same variance on top: half of the variance is
    shared."""
    every = GRPOConfig(num_steps=4, num_seeds=1, num_updates=1)
    some = dataclasses.replace(every, branch_steps=(0, 2))
    chain = dataclasses.replace(every, trunk="sde", num_branches=1, group="prompt", num_seeds=2)
    rng, samples = torch.Generator().manual_seed(0), {"every": [], "some": [], "noisy": [], "chain": []}
    for _ in range(40):
        gradients = {step: torch.randn(500, generator=rng) for step in range(3)}
        noisy = {step: gradients[step] + torch.randn(500, generator=rng) for step in (0, 2)}
        drawn = {"every": gradients, "some": {step: gradients[step] for step in (0, 2)}, "noisy": noisy}
        for name, its in {**drawn, "chain": gradients}.items():
            samples[name].append(Sample(its, dict.fromkeys(its, 0.0), 0.0, 0.0))
    settings = {"every": every, "some": some, "noisy": dataclasses.replace(some, tail_steps=1), "chain": chain}
    kept = [setting.kept for setting in summarised(settings, samples).settings]
    assert [kept[0].value, kept[1].value] == pytest.approx([1, 1])
    assert abs(kept[2].value - 0.5) < 4 * kept[2].error < 0.1
    assert kept[3] is None


def test_the_cost_of_drawn_steps_is_that_of_an_average_draw():
    config = GRPOConfig(num_steps=5, num_seeds=2, num_branches=3, branches_per_trajectory=1)
    chain = GRPOConfig(num_steps=5, num_seeds=2, trunk="sde", num_branches=1, group="prompt")
    report = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, {"drawn": config, "chain": chain}, 3)
    drawn = [1 + step + 3 * (4 - step) for step in range(4)]
    assert [setting.evaluations for setting in report.settings] == pytest.approx([2 * sum(drawn) / 4, 2 * 5])
    assert [setting.cost for setting in report.settings] == pytest.approx([2 * (sum(drawn) / 4 + 3), 2 * (5 + 3 * 4)])


def known(config):
    """What is known of a setting without a policy: all its steps have been drawn, with some gradients."""
    steps, rng = [step for step, _ in config.branch_counts], torch.Generator().manual_seed(0)
    samples = [Sample({s: torch.randn(9, generator=rng) for s in steps}, dict.fromkeys(steps, 0.0), 0.0, 0.0)] * 3
    return summarised({"mine": config}, {"mine": samples}).settings[0]


def test_drawn_steps_cost_their_share():
    """With probabilities of 1/2, 3/10 and 2/10: trunks end at the step that is drawn, with 4 tails and 3 passes."""
    drawn = {"branches_per_trajectory": 1, "branch_probabilities": (5.0, 3.0, 2.0)}
    setting = known(GRPOConfig(num_steps=4, num_seeds=2, num_branches=4, **drawn))
    own = [0.5 * (4 * 3 + 3), 0.3 * (4 * 2 + 3), 0.2 * (4 * 1 + 3)]
    assert [step.cost for step in setting.steps] == pytest.approx([2 * cost for cost in own])
    trunks = 2 * (0.5 * 1 + 0.3 * 2 + 0.2 * 3)
    assert setting.cost == pytest.approx(trunks + 2 * sum(own))


def test_drawn_steps_of_a_trajectory_share_its_cost_by_how_often_they_are_drawn():
    """Windows of 2 of 4 steps: the inner steps are in two of the three, the others in one."""
    setting = known(dataclasses.replace(with_method(GRPOConfig(num_steps=5), "mixgrpo_random"), num_seeds=6))
    assert setting.cost == pytest.approx(6 * (5 + 3 * 2))
    assert [step.cost for step in setting.steps] == pytest.approx([11, 22, 22, 11])


def test_the_spread_is_that_of_the_groups_that_are_compared():
    config = GRPOConfig(num_steps=3, num_seeds=3, num_branches=1, group="prompt", num_updates=1)
    (setting,) = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, config, 3).settings
    assert all(step.spread > 0.01 for step in setting.steps)


@pytest.mark.parametrize("tail_steps", ["adaptive", 1, (2, 1)])
def test_a_gate_costs_the_meter_nothing(tail_steps):
    gated = GRPOConfig(num_steps=5, num_seeds=1, branch_steps=(1, 3), tail_steps=tail_steps, gate_every=2)
    report = tff.measure_signal(TinyPolicy(), PROMPTS, brightness, gated, 3)
    tails = [length for _, length in gated.tail_lengths]
    assert report.settings[0].evaluations == 4 + 6 * sum(tails)
    assert [step.cost for step in report.settings[0].steps] == [6 * length + 3 for length in tails]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {}}, "measure_signal: settings must be a GRPOConfig, or several by name, got none"),
        ({"num_iterations": 2}, "measure_signal: num_iterations must be >= 3, got 2"),
        ({"prompts": []}, r"measure_signal: prompts must be a list of at least one text, or a function, got \[\]"),
        ({"sketch_size": 0}, "Sketch: size must be >= 1 or None, got 0"),
    ],
)
def test_errors_name_the_argument(changes, message):
    arguments = {"policy": TinyPolicy(), "prompts": PROMPTS, "reward_fn": brightness, "settings": GRPOConfig()}
    with pytest.raises(ValueError, match=message):
        tff.measure_signal(**{**arguments, **changes})
