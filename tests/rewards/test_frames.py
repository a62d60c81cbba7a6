"""Image rewards on videos, and rewards of one's own that take videos."""

from __future__ import annotations

import pytest
import torch

from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.base import range_of
from tempflow_fast.rewards.frames import FramesReward

TEXTS, NO_METADATA = ["a", "b"], [{}, {}]


def level(images, prompts, metadata):
    assert images.shape[1:] == (3, 4, 4)
    return images.mean((1, 2, 3))


def motion(videos, prompts, metadata):
    return (videos[:, 1:] - videos[:, :-1]).abs().mean((1, 2, 3, 4))


def videos(num_frames=8):
    """[2, F, 3, 4, 4]: frame f of the first is f / F, the second is half of it."""
    levels = torch.arange(num_frames) / num_frames
    return torch.stack([levels, levels / 2])[:, :, None, None, None].expand(-1, -1, 3, 4, 4)


@pytest.mark.parametrize(("num_frames", "frames"), [(1, [4]), (2, [2, 6]), (4, [1, 3, 5, 7]), (8, range(8))])
def test_the_score_is_the_mean_over_frames(num_frames, frames):
    expected = sum(frame / 8 for frame in frames) / num_frames
    scores = get_reward({"level": {"reward": level, "frames": num_frames}}).score(videos(), TEXTS, NO_METADATA)
    assert scores.total.tolist() == pytest.approx([expected, expected / 2])


def test_an_image_is_scored_as_it_is():
    images = videos()[:, 3]
    assert torch.equal(FramesReward(level, 4)(images, TEXTS, NO_METADATA), level(images, TEXTS, NO_METADATA))


@pytest.mark.parametrize("num_frames", [0, 1.5, "4"])
def test_a_number_of_frames_that_is_none_is_refused(num_frames):
    with pytest.raises(ValueError, match="FramesReward: num_frames must be"):
        get_reward({"jpeg_compressibility": {"frames": num_frames}})


def test_rewards_of_images_refuse_videos_by_name():
    reward = get_reward({"jpeg": {"reward": "jpeg_compressibility"}, "motion": {"reward": motion}})
    message = r'get_reward: frames of jpeg must be given for videos, as in \{"jpeg": \{"frames": 4\}\}'
    with pytest.raises(ValueError, match=message):
        reward.score(videos(), TEXTS, NO_METADATA)


def test_with_frames_they_take_them_and_ones_own_get_the_video():
    reward = get_reward({"jpeg_compressibility": {"frames": 2}, "motion": {"reward": motion}})
    reward.check_videos()
    scores = reward.score(videos(), TEXTS, NO_METADATA)
    assert scores.parts["motion"].tolist() == pytest.approx([1 / 8, 1 / 16])
    jpeg = get_reward("jpeg_compressibility")
    each = torch.stack([jpeg.score(videos()[:, frame], TEXTS, NO_METADATA).total for frame in (2, 6)])
    assert torch.equal(scores.parts["jpeg_compressibility"], each.mean(0))
    assert range_of(reward.rewards["jpeg_compressibility"]) == range_of(jpeg.rewards["jpeg_compressibility"])
