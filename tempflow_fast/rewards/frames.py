"""A reward for images on videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import integer, require
from .base import AroundReward, Reward


class FramesReward(AroundReward):
    """The mean of an image reward's scores of some frames of a video; an image is scored as it is.

    Args:
        reward: scores images.
        num_frames: how many frames; each is the middle one of an equal part of the video.

    Raises:
        ValueError: if `num_frames` is not a positive integer.
    """

    def __init__(self, reward: Reward, num_frames: int) -> None:
        num_frames = integer("FramesReward", "num_frames", num_frames)
        require(num_frames >= 1, "FramesReward", "num_frames", ">= 1", num_frames)
        super().__init__(reward)
        self.num_frames = num_frames

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores [R]; the reward is called once for each frame.

        Args:
            images: [R, F, 3, H, W] or [R, 3, H, W] in [0, 1].
            prompts: R texts.
            metadata: R entries of the prompt set.
        """
        if images.dim() == 4:
            return self.reward(images, prompts, metadata)
        length = images.shape[1]
        frames = [(2 * part + 1) * length // (2 * self.num_frames) for part in range(self.num_frames)]
        scores = [torch.as_tensor(self.reward(images[:, frame], prompts, metadata)) for frame in frames]
        return torch.stack(scores).double().mean(0)
