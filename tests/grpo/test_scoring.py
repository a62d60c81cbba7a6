"""Several rewards in an iteration: pieces scored during decoding, sums of rewards or of advantages, what is logged."""

import time
import weakref

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness

from tempflow_fast import GRPOConfig, grpo_step, rollout, step_table
from tempflow_fast.batching import equal_pieces
from tempflow_fast.grpo import step as grpo
from tempflow_fast.grpo.advantages import group_advantages
from tempflow_fast.grpo.branches import Branches
from tempflow_fast.grpo.image_statistics import STATISTICS, image_statistics
from tempflow_fast.grpo.live_bytes import LiveBytes
from tempflow_fast.grpo.scoring import RolloutScorer, Scored
from tempflow_fast.grpo.shares import Shares
from tempflow_fast.processes import Processes
from tempflow_fast.rewards import RewardError, WeightedReward, background
from tempflow_fast.rewards.deadline import DaemonThread

NOTHING = torch.zeros(0, dtype=torch.int64)
SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3}


def darkness(images, prompts, metadata):
    return -100 * images.mean((1, 2, 3))


BOTH = WeightedReward(
    {"red": brightness, "dark": darkness, "watched": darkness}, {"red": 2.0, "dark": 0.5, "watched": 0}
)


def score(
    policy, latents, reward, processes, num_trajectories=2, max_batch=None, clock=None, decode_batch=None
) -> Scored:
    """Scores latents [n, B, K, *shape] piece by piece, in the order [B, n, K]."""
    clock, shares = clock or grpo.StageClock(), Shares(num_trajectories, 1, processes.count, processes.index)
    num_steps, count = latents.shape[1:3]
    branches = Branches.everywhere(num_trajectories, dict.fromkeys(range(num_steps), count))
    order = torch.arange(latents.shape[:3].numel()).view(latents.shape[:3]).transpose(0, 1).flatten()
    flat, prompts, metadata = latents.flatten(0, 2), list("abcdefgh")[:num_trajectories], [{}] * num_trajectories
    inputs = (policy, reward, prompts, metadata, shares, branches, NOTHING, processes, clock.stage, decode_batch)
    with RolloutScorer(*inputs) as scorer:
        for piece in equal_pieces(len(flat), max_batch):
            scorer.finish(flat[order[piece]], order[piece])
        return scorer.collect()


def iteration(monkeypatch, reward, **settings):
    """The metrics of an iteration, its finished latents and the advantages that it trains with."""
    seen = {}
    policy = TinyPolicy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    real = grpo.update

    def noting(policy, drawn, advantages, *rest):
        seen.update(latents=drawn.latents, advantages=advantages.view(drawn.latents.shape[:3]))
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
    scored = score(SlowDecoder(), latents, reward, Processes(), 2, 2, clock)
    assert scored.seconds_busy > 0.4
    assert clock.seconds["seconds_reward"] < 0.25  # four pieces of 0.1 s, of which only the last had to be waited for
    assert torch.allclose(scored.rewards.total, brightness(latents.flatten(0, 2).sigmoid(), [], []).double())


def test_rewards_run_beside_the_network_calls_that_finish_other_branches():
    """Ten rows of the last step in two calls of 0.2 s: the first call's images are scored during the second call."""

    class SlowNetwork(TinyPolicy):
        def velocity(self, *arguments):
            time.sleep(0.2)
            return super().velocity(*arguments)

    def slow(images, prompts, metadata):
        time.sleep(0.2)
        return brightness(images, prompts, metadata)

    policy = SlowNetwork()
    config = GRPOConfig(num_steps=2, num_seeds=1, num_branches=10, num_updates=1, max_batch=5)
    metrics = grpo_step(policy, ["a"], slow, torch.optim.SGD(policy.parameters(), lr=0.0), config)
    assert metrics["seconds_reward_busy"] > 0.4
    assert metrics["seconds_reward"] < 0.3
    assert 0.6 <= metrics["seconds_rollout"] < 0.8, "what is inside another stage counts for that one alone"


@pytest.mark.parametrize("branch_steps", [(0, 1), (1, 3)])
@pytest.mark.parametrize("max_batch", [None, 4])
def test_branches_are_handed_over_once_each_in_order(branch_steps, max_batch):
    seen = []

    def finished(latents, rows):
        seen.append((latents.clone(), rows))

    policy = TinyPolicy()
    table, noise = step_table(policy.sigmas(4), branch_steps=branch_steps, sampler="flow_sde"), torch.randn(3, 3, 2, 2)
    calls = {"max_batch": max_batch, "on_finished": finished}
    drawn = rollout(policy, policy.encode(PROMPTS), table, noise, 2, **calls)
    latents, rows = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert torch.equal(latents, drawn.latents.transpose(0, 1).flatten(0, 2))
    assert torch.equal(latents, drawn.flat_latents[rows])


def test_padding_is_not_scored():
    """Three trajectories for two processes: the second one has one of them, and carries another as padding."""

    def first_value(images, prompts, metadata):
        assert prompts == ["b"] * len(images)
        return images[:, 0, 0, 0]

    latents, reward = torch.randn(2, 2, 2, 3, 2, 2), WeightedReward({"first": first_value}, {"first": 1.0})
    others = [torch.zeros(12), torch.zeros(4)]
    scored = score(TinyPolicy(), latents, reward, TwoProcesses(others), 3, max_batch=3)
    want = torch.zeros(3, 2, 2, dtype=torch.float64)
    want[1] = latents[0].sigmoid()[..., 0, 0, 0]
    assert torch.allclose(scored.rewards.total, want.flatten())
    for name, value in image_statistics(latents[:1].sigmoid().flatten(0, 1)).items():
        assert scored.statistics[name].item() == pytest.approx(value.item() / 3, rel=1e-5)


class TwoProcesses(Processes):
    """The second of two processes, as far as sums go: the first one's numbers are given."""

    count, index = 2, 1

    def __init__(self, others: list[torch.Tensor]) -> None:
        self.others = others

    def sum(self, tensor):
        return tensor + self.others.pop(0)


def test_a_failure_in_another_process_is_heard_of_and_ends_this_one_too():
    reward, latents = WeightedReward({"red": brightness}, {"red": 1.0}), torch.randn(1, 1, 2, 3, 2, 2)
    failed = torch.tensor([torch.nan, torch.nan, 0, 0], dtype=torch.float64)
    with pytest.raises(RewardError, match=r"\"red\" failed on sample 0 \(prompt 'a'\): in another process"):
        score(TinyPolicy(), latents, reward, TwoProcesses([failed]))


def test_a_failure_here_is_told_to_the_others_before_it_is_raised():
    def failing(images, prompts, metadata):
        raise KeyError("nothing")

    told = []

    class Listening(TwoProcesses):
        def sum(self, tensor):
            told.append(tensor)
            return super().sum(tensor)

    reward, latents = WeightedReward({"mine": failing}, {"mine": 1.0}), torch.randn(1, 1, 1, 3, 2, 2)
    with pytest.raises(RewardError, match="KeyError: 'nothing'"):
        score(TinyPolicy(), latents, reward, Listening([torch.zeros(2)]))
    assert told[0].isnan().flatten().tolist() == [False, True]


class PipelineShapes(TinyPolicy):
    """Latents and images in the proportions of SD3.5 Medium, `side` pixels; its network is a constant."""

    def __init__(self, side):
        super().__init__()
        self.latent_shape, self.side = (16, side // 8, side // 8), side

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        return 0.1 * latents + self.network[0].bias[0], None

    def decode(self, latents):
        return latents[:, :3].sigmoid().repeat_interleave(8, 2).repeat_interleave(8, 3)


def peak_of_an_iteration(monkeypatch, side, seconds):
    """Most bytes alive at once while an iteration of 24 trajectories and 1296 images is drawn, scored and trained."""
    monkeypatch.setattr(background, "WAITING_BYTES", background.WAITING_BYTES * side**2 // 512**2)
    num_seen = []

    def reward(images, prompts, metadata):
        num_seen.append(len(images))
        time.sleep(seconds)
        return images[:, 0].mean((1, 2))

    policy = PipelineShapes(side)
    config = GRPOConfig(max_batch=24, micro_batch=4, decode_batch=24)
    with LiveBytes() as bytes_:
        grpo_step(policy, list("abcdef"), reward, torch.optim.SGD(policy.parameters(), lr=0.0), config)
    assert sum(num_seen) == 1296
    assert max(num_seen) == 24
    return bytes_.peak


@pytest.mark.parametrize("seconds", [0.0, pytest.param(0.02, marks=pytest.mark.slow)], ids=["fast", "slow"])
def test_images_never_pile_up(monkeypatch, seconds):
    """All 1296 images would be 3.8 GiB at 512 px; an iteration holds 1 GiB with its latents. Here, 1/64 of both."""
    assert peak_of_an_iteration(monkeypatch, 64, seconds) <= 2**30 / 64


def test_statistics_do_not_depend_on_the_pieces():
    latents, reward = torch.randn(3, 4, 5, 3, 2, 2), WeightedReward({"red": brightness}, {"red": 1.0})
    whole, *cut = (
        score(TinyPolicy(), latents, reward, Processes(), 3, decode_batch=batch).statistics for batch in (None, 1, 3, 7)
    )
    assert set(STATISTICS) == set(whole)
    for statistics in cut:
        assert {name: value.item() for name, value in statistics.items()} == pytest.approx(
            {name: value.item() for name, value in whole.items()}, rel=1e-5
        )


def test_a_thread_that_waits_holds_no_images():
    images, thread = torch.zeros(1, 3, 2, 2), DaemonThread("reward")
    kept = weakref.ref(images)
    assert thread.submit(len, images).result() == 1
    del images
    time.sleep(0.1)
    gone = kept() is None
    thread.close(wait=True)
    assert gone
