"""What the rest of the package knows of a reward: the protocol, its scores, and how one fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Reward(Protocol):
    """Scores images; higher is better. Any callable of this signature is one.

    It may say more of itself in two attributes: `name`, for messages and logs, and `range`, the lowest and the highest
    score that it can give (see `range_of`).
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Rewards [R], finite floats, of images [R, 3, H, W] in [0, 1], which may live on any device.

        `prompts` and `metadata` have one entry per image; metadata is {} where the prompt set has none. An image is
        judged by itself: its score does not depend on the others of the batch.
        """
        ...


class RewardError(RuntimeError):
    """A reward that could not score a sample. It ends a run, since a failure is never a score."""

    def __init__(self, name: str, sample: int, prompt: str, reason: str) -> None:
        super().__init__(f'reward "{name}" failed on sample {sample} (prompt {prompt!r}): {reason}')
        self.name, self.sample, self.prompt, self.reason = name, sample, prompt, reason


class FinalError(Exception):
    """Raised by a reward that has done its own retrying: `sample`, counted in its call, failed for good."""

    def __init__(self, sample: int, reason: str) -> None:
        super().__init__(reason)
        self.sample = sample


@dataclass(frozen=True, eq=False)
class Scores:
    """What R images scored, reward by reward."""

    parts: dict[str, Tensor]
    """Name -> [R], float64 on the host; as the reward gave them, without their weight."""
    weights: dict[str, float]
    """Name -> weight."""

    @property
    def total(self) -> Tensor:
        """The weighted sum of the rewards, [R]."""
        return self.weighted_sum(lambda part: part)

    def weighted_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The weighted sum of `function` of each part: of each reward's own advantages, say, rather than of rewards."""
        terms = [self.weights[name] * function(part) for name, part in self.parts.items()]
        return sum(terms[1:], terms[0])

    @staticmethod
    def joined(pieces: Sequence[Scores]) -> Scores:
        """The scores of the images of all `pieces`, in that order."""
        names = pieces[0].parts
        return Scores({name: torch.cat([piece.parts[name] for piece in pieces]) for name in names}, pieces[0].weights)

    def reordered(self, order: Tensor) -> Scores:
        """The scores of the images `order`, int64 [R] on the host."""
        return Scores({name: part[order.to(part.device)] for name, part in self.parts.items()}, self.weights)


def range_of(reward: Reward) -> tuple[float, float]:
    """The lowest and the highest score that `reward` can give; infinite where it declares none."""
    return getattr(reward, "range", (-math.inf, math.inf))


def name_of(reward: Reward) -> str:
    """The name by which messages and logs know `reward`."""
    return getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__


def declared(low: float, high: float) -> Callable[[Reward], Reward]:
    """Decorates a reward function with its range."""

    def decorate(reward: Reward) -> Reward:
        reward.range = (low, high)  # type: ignore[attr-defined]
        return reward

    return decorate


def one_line(value: object, limit: int = 300) -> str:
    """`value` for a message: in one line, cut at `limit` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


Metadata = Mapping[str, Any]
