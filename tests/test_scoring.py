"""Several rewards in an iteration: pieces beside decoding, sums of rewards or of advantages, what is logged."""

import time

import pytest
import torch
from tiny import PROMPTS, TinyPolicy, brightness

from tempflow_fast import GRPOConfig, grpo, grpo_step
from tempflow_fast.advantages import group_advantages
from tempflow_fast.image_statistics import STATISTICS, image_statistics
from tempflow_fast.processes import Processes
from tempflow_fast.rewards import RewardError, WeightedReward
from tempflow_fast.scoring import score_rollout

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3}


def darkness(images, prompts, metadata):
    return -100 * images.mean((1, 2, 3))


BOTH = WeightedReward(
    {"red": brightness, "dark": darkness, "watched": darkness}, {"red": 2.0, "dark": 0.5, "watched": 0}
)


def iteration(monkeypatch, reward, **settings):
    """The metrics of an iteration, its finished latents and the advantages that it trains with."""
    seen = {}
    policy = TinyPolicy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    real = grpo.update

    def noting(policy, drawn, advantages, *rest):
        seen.update(latents=drawn.latents, advantages=advantages)
        return real(policy, drawn, advantages, *rest)

    monkeypatch.setattr(grpo, "update", noting)
    metrics = grpo_step(policy, PROMPTS, reward, optimizer, GRPOConfig(**{**SMALL, **settings}))
    images = policy.decode(seen["latents"].flatten(0, 2))
    return metrics, images, seen["advantages"]


@pytest.mark.parametrize("max_batch", [None, 5])
def test_every_reward_is_logged_and_the_sum_is_trained_on(monkeypatch, max_batch):
    metrics, images, advantages = iteration(monkeypatch, BOTH, max_batch=max_batch)
    red, dark = (score(images, None, None).double() for score in (brightness, darkness))
    assert metrics["reward_red"].item() == pytest.approx(red.mean().item())
    assert metrics["reward_dark"].item() == metrics["reward_watched"].item() == pytest.approx(dark.mean().item())
    total = (2 * red + 0.5 * dark).view(advantages.shape)
    assert metrics["reward_mean"].item() == pytest.approx(total.mean().item())
    assert torch.allclose(advantages, group_advantages(total), atol=1e-4)
    for name, value in image_statistics(images.unflatten(0, (-1, 3))).items():
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert set(STATISTICS) < set(metrics)


def test_advantages_of_each_reward_can_be_summed_instead(monkeypatch):
    _, images, advantages = iteration(monkeypatch, BOTH, aggregate="advantages")
    parts = [score(images, None, None).double().view(advantages.shape) for score in (brightness, darkness)]
    expected = (2 * group_advantages(parts[0]) + 0.5 * group_advantages(parts[1])).clamp(-5, 5)
    assert torch.allclose(advantages, expected, atol=1e-4)
    _, _, of_sum = iteration(monkeypatch, BOTH)
    assert (of_sum - advantages).abs().max() > 0.1
    with pytest.raises(ValueError, match="aggregate must be one of"):
        GRPOConfig(aggregate="sums")


def test_one_reward_alone_is_not_logged_twice(monkeypatch):
    metrics, _, _ = iteration(monkeypatch, brightness)
    assert not any(name.startswith("reward_") for name in metrics if name not in ("reward_mean", "reward_std"))


def test_pieces_are_scored_while_the_next_ones_are_decoded():
    class SlowDecoder(TinyPolicy):
        def decode(self, latents):
            time.sleep(0.1)
            return super().decode(latents)

    def slow(images, prompts, metadata):
        time.sleep(0.1)
        return brightness(images, prompts, metadata)

    clock, latents = grpo.StageClock(), torch.randn(2, 2, 2, 3, 2, 2)
    reward = WeightedReward({"slow": slow}, {"slow": 1.0})
    scored = score_rollout(SlowDecoder(), latents, reward, ["a", "b"], [{}, {}], [0, 1], Processes(), 2, clock.stage)
    assert scored.seconds_busy > 0.4
    assert clock.seconds["seconds_reward"] < 0.25  # four pieces of 0.1 s, of which only the last had to be waited for
    assert torch.allclose(
        scored.rewards.total, brightness(latents.flatten(0, 2).sigmoid(), [], []).double().view(2, 2, 2)
    )


class TwoProcesses(Processes):
    """The second of two processes, as far as sums go: the first one's numbers are given."""

    count, index = 2, 1

    def __init__(self, others: list[torch.Tensor]) -> None:
        self.others = others

    def sum(self, tensor):
        return tensor + self.others.pop(0)


def test_a_failure_in_another_process_is_heard_of_and_ends_this_one_too():
    reward, latents = WeightedReward({"red": brightness}, {"red": 1.0}), torch.randn(1, 1, 2, 3, 2, 2)
    failed = torch.zeros(2, 1, 2, dtype=torch.float64)
    failed[0] = torch.nan
    arguments = (["a", "b"], [{}, {}], [1], TwoProcesses([failed]), None, grpo.StageClock().stage)
    with pytest.raises(RewardError, match=r"\"red\" failed on sample 0 \(prompt 'a'\): in another process"):
        score_rollout(TinyPolicy(), latents, reward, *arguments)


def test_a_failure_here_is_told_to_the_others_before_it_is_raised():
    def failing(images, prompts, metadata):
        raise KeyError("nothing")

    told = []

    class Listening(TwoProcesses):
        def sum(self, tensor):
            told.append(tensor)
            return super().sum(tensor)

    reward, latents = WeightedReward({"mine": failing}, {"mine": 1.0}), torch.randn(1, 1, 1, 3, 2, 2)
    arguments = (["a", "b"], [{}, {}], [1], Listening([torch.zeros(2, 1, 1)]), None, grpo.StageClock().stage)
    with pytest.raises(RewardError, match="KeyError: 'nothing'"):
        score_rollout(TinyPolicy(), latents, reward, *arguments)
    assert told[0].isnan().flatten().tolist() == [False, True]
