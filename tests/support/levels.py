"""Rewards that return the brightness of an image, and images to score."""

import torch
from torch import Tensor

from tempflow_fast.rewards.base import declared

HERE = __name__
TEXTS = [f"prompt {row}" for row in range(8)]
NO_METADATA: list[dict] = [{} for _ in TEXTS]


def images(num: int = 8) -> Tensor:
    """Image r is r/8 everywhere."""
    return (torch.arange(num) / 8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


def level(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    return images.mean((1, 2, 3))


@declared(0.0, 2.0)
def doubled(images: Tensor, prompts: list[str], metadata: list[dict]) -> list[float]:
    return (2 * images.mean((1, 2, 3))).tolist()


class Scaled:
    """A reward with a setting and a memory of its calls."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.calls = scale, []

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        self.calls.append(len(images))
        return self.scale * level(images, prompts, metadata)


class Slow(Scaled):
    """A reward whose setting has the name of one that every reward has."""

    def __init__(self, timeout: float = 1.0) -> None:
        super().__init__(timeout)


def failing_on(row: int, failure):
    """A reward that fails wherever image `row` is among its images."""

    def reward(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        scores = level(images, prompts, metadata)
        found = [i for i, prompt in enumerate(prompts) if prompt == TEXTS[row]]
        return failure(scores, found[0]) if found else scores

    return reward


def raises(scores: Tensor, i: int) -> Tensor:
    raise KeyError("no such thing")


def one_less(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    return level(images, prompts, metadata)[1:]
