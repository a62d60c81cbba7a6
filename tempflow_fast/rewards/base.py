"""What the rest of the package knows about a reward: the protocol, its scores, and how it fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..text import printable


class Reward(Protocol):
    """Scores images or videos; higher is better. Any callable of this signature is one.

    It may have four attributes: `name`, for messages and logs; `range`, the lowest and the highest score that it can
    give (see `range_of`); `check_prompts`, which refuses prompts before a run (see `check_prompts`); and `served`, what
    it computes if that is decided elsewhere (see `served_by`).
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]], /) -> Tensor:
        """Scores images, each one independently of the others in the batch.

        Args:
            images: [R, 3, H, W], or of a model that makes videos [R, F, 3, H, W]; in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set, {} where it has none.

        Returns:
            Rewards [R], finite floats.
        """
        ...


class RewardError(RuntimeError):
    """A reward could not score a sample. It ends a run, since a failure is never a score.

    Args:
        name: of the reward.
        sample: its index in the batch.
        prompt: of the sample.
        reason: why it has no score.
    """

    def __init__(self, name: str, sample: int, prompt: str, reason: str) -> None:
        super().__init__(f'reward "{name}" failed on sample {sample} (prompt {prompt!r}): {reason}')
        self.name, self.sample, self.prompt, self.reason = name, sample, prompt, reason


class FinalError(Exception):
    """A permanent failure, raised by a reward that does its own retrying.

    Args:
        sample: the index of the failed sample in the call.
        reason: why it has no score.
    """

    def __init__(self, sample: int, reason: str) -> None:
        super().__init__(reason)
        self.sample = sample


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of R images, reward by reward."""

    parts: dict[str, Tensor]
    """Name -> [R], float64 on the host: as the reward gave them, unweighted."""
    weights: dict[str, float]
    """Name -> weight."""

    @property
    def total(self) -> Tensor:
        """The weighted sum of the rewards, [R]."""
        return self.weighted_sum(lambda part: part)

    def weighted_sum(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The weighted sum of a function of each reward's scores, for example of each reward's advantages.

        Args:
            function: takes the scores [R] of one reward.

        Returns:
            The sum, of the shape that `function` returns.
        """
        terms = [self.weights[name] * function(part) for name, part in self.parts.items()]
        return sum(terms[1:], terms[0])

    def at(self, rows: Tensor) -> Scores:
        """The scores of some images.

        Args:
            rows: int64 [n].
        """
        return Scores({name: part[rows] for name, part in self.parts.items()}, self.weights)

    @staticmethod
    def joined(pieces: Sequence[Scores]) -> Scores:
        """The scores of several batches as one.

        Args:
            pieces: of the same rewards.

        Returns:
            The scores of the images of all pieces, in that order.
        """
        names = pieces[0].parts
        return Scores({name: torch.cat([piece.parts[name] for piece in pieces]) for name in names}, pieces[0].weights)


def range_of(reward: Reward) -> tuple[float, float]:
    """The lowest and the highest score that a reward can give; infinite if it does not declare them.

    Args:
        reward: any reward.
    """
    return getattr(reward, "range", (-math.inf, math.inf))


def name_of(reward: Reward) -> str:
    """The name of a reward in messages and logs.

    Args:
        reward: any reward.
    """
    return getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__


def served_by(reward: Reward) -> str | None:
    """What a reward computes, in words that change with it; None: its settings decide it, or nobody knows.

    Args:
        reward: any reward.
    """
    return getattr(reward, "served", None)


PromptsCheck = Callable[[Sequence[str], Sequence[dict[str, Any]]], None]
"""Takes R prompts and their metadata; raises a ValueError for one that no image can be scored by."""


def check_prompts(reward: Reward, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
    """Asks a reward that can tell whether it can score images of these prompts; no image is needed.

    Args:
        reward: any reward.
        prompts: R texts.
        metadata: R entries of the prompt set.

    Raises:
        ValueError: from the reward, for a prompt that it cannot score.
    """
    check: PromptsCheck | None = getattr(reward, "check_prompts", None)
    if check is not None:
        check(prompts, metadata)


class AroundReward:
    """What rewards that call another one have in common.

    Args:
        reward: the other one.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.range = range_of(reward)
        self.served = served_by(reward)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Asks the reward whether it can score these prompts.

        Args:
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            ValueError: from the reward.
        """
        check_prompts(self.reward, prompts, metadata)


def declared(low: float, high: float, check: PromptsCheck | None = None) -> Callable[[Reward], Reward]:
    """Decorates a reward function with its range.

    Args:
        low: the lowest score.
        high: the highest score.
        check: its `check_prompts`; None: it takes any prompts.
    """

    def decorate(reward: Reward) -> Reward:
        marked: Any = reward
        marked.range = (low, high)
        marked.check_prompts = check
        return reward

    return decorate


def one_line(value: object, limit: int = 300) -> str:
    """A value as one line of a message, without characters that a terminal would obey.

    Args:
        value: anything.
        limit: number of characters at which the line is cut.
    """
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


Metadata = Mapping[str, Any]
