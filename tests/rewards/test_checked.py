"""Checks of a reward's arguments and scores, and its failures."""

import warnings

import pytest
import torch
from support.levels import HERE, NO_METADATA, TEXTS, failing_on, images, level, raises
from torch import Tensor

from tempflow_fast.rewards import RewardError, WeightedReward, get_reward


def test_wrong_arguments_of_a_call_are_named():
    reward = get_reward(level)
    with pytest.raises(
        ValueError, match=r"images must be \[R, 3, H, W\] or \[R, F, 3, H, W\] with R >= 1, got \[8, 4, 4\]"
    ):
        reward(images()[:, 0], TEXTS, NO_METADATA)
    with pytest.raises(ValueError, match="score: metadata must be 8 entries, as images, got 7"):
        reward(images(), TEXTS, NO_METADATA[:7])


@pytest.mark.filterwarnings('ignore:reward "mine" failed')
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (raises, "KeyError: 'no such thing'"),
        (lambda scores, i: scores.index_fill(0, torch.tensor([i]), float("nan")), "must be finite .* got nan"),
        (lambda scores, i: scores.index_fill(0, torch.tensor([i]), float("inf")), "must be finite .* got inf"),
    ],
)
def test_a_failure_names_the_reward_and_the_sample_and_is_no_score(failure, reason):
    reward = WeightedReward({"fine": level, "mine": failing_on(5, failure)}, {"fine": 1, "mine": 1})
    message = rf'reward "mine" failed on sample 5 \(prompt \'prompt 5\'\): .*{reason}'
    with pytest.raises(RewardError, match=message) as caught:
        reward(images(), TEXTS, NO_METADATA)
    assert (caught.value.name, caught.value.sample) == ("mine", 5)


def test_a_wrong_number_of_scores_and_scores_out_of_range_are_failures():
    with pytest.raises(RewardError, match=r"scores must be \[8\], one per image, got \[7\]"):
        get_reward({"x": {"reward": f"{HERE}:one_less"}})(images(), TEXTS, NO_METADATA)
    with pytest.raises(RewardError, match=r'doubled" failed on sample 3 .* in 0.0..2.0, got 2.25'):
        get_reward(f"{HERE}:doubled")(images() * 3, TEXTS, NO_METADATA)


def test_a_batch_that_is_too_large_is_scored_in_halves():
    def small_batches_only(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        if len(images) > 3:
            raise MemoryError("too many")
        return level(images, prompts, metadata)

    with pytest.warns(
        UserWarning, match='"small_batches_only" failed on . images and tries halves: MemoryError'
    ) as told:
        scores = get_reward(small_batches_only)(images(), TEXTS, NO_METADATA)
    assert torch.equal(scores, torch.arange(8, dtype=torch.float64) / 8)
    assert [str(entry.message).split("failed on ")[1][0] for entry in told] == ["8", "4", "4"]


def test_a_reward_is_called_without_gradients_in_whichever_thread():
    def recorded(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        assert not (images * parameter).requires_grad
        return level(images, prompts, metadata)

    parameter = torch.ones(1, requires_grad=True)
    assert get_reward(recorded)(images(2), TEXTS[:2], NO_METADATA[:2]).tolist() == [0, 0.125]


def test_no_warning_on_a_healthy_reward():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_reward(level)(images(), TEXTS, NO_METADATA)
