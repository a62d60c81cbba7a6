"""One reward on one batch: its scores, or an error that names the sample."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import FinalError, Reward, RewardError, one_line, range_of
from .deadline import OverdueError, within
from .isolated import isolated_call

RANGE_SLACK = 0.01
"""Fraction of a declared range by which half precision may exceed it."""


def checked_scores(
    name: str,
    reward: Reward,
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[dict[str, Any]],
    timeout: float | None,
) -> Tensor:
    """The scores of one reward, checked: finite, in the declared range, one per image.

    A batch that raises is retried in halves, down to single images: memory may then suffice, and what still fails is a
    known sample. A reward that does its own retrying raises `FinalError`. For what a call cannot do to the run, see
    `isolated`. A reward that exceeds its time limit is not
    called again, since the first call may still hold what it needs.

    Args:
        name: of the reward, for messages.
        reward: the one to call.
        images: [R, 3, H, W] in [0, 1], on any device.
        prompts: R texts.
        metadata: R entries of the prompt set.
        timeout: seconds for a call; None: no limit.

    Returns:
        Scores, float64 [R] on the host.

    Raises:
        RewardError: naming the reward and the first sample that failed, counted in `images`.
    """
    scores = _halving(name, functools.partial(_in_time, reward, timeout), images, prompts, metadata, first=0)
    low, high = range_of(reward)
    slack = RANGE_SLACK * (high - low) if high - low < float("inf") else 0.0
    wrong = ~scores.isfinite() | (scores < low - slack) | (scores > high + slack)
    if wrong.any():
        sample = int(wrong.nonzero()[0])
        reason = f"score must be finite and in {low}..{high}, got {scores[sample].item()}"
        if scores[sample].isinf():
            reason += " (float32 holds nothing above 3e38)"
        raise RewardError(name, sample, prompts[sample], reason)
    return scores


def _in_time(
    reward: Reward, timeout: float | None, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]
) -> Tensor:
    """The scores of one call; OverdueError if it takes longer than `timeout` seconds."""
    # Gradient mode and stream belong to a thread, and the call gets a separate one.
    stream = torch.cuda.current_stream(images.device) if images.is_cuda else None

    def call() -> Tensor:
        with torch.no_grad(), torch.cuda.stream(stream):
            return isolated_call(reward, images, prompts, metadata)

    return within(timeout, call)


def _halving(
    name: str, reward: Reward, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]], first: int
) -> Tensor:
    """Scores [R]; `first` is the number of the first image in the whole batch."""
    try:
        scores = reward(images, prompts, metadata)
    except FinalError as error:
        raise RewardError(name, first + error.sample, prompts[error.sample], one_line(error)) from error
    except OverdueError as error:
        raise RewardError(name, first, prompts[0], f"{error}, the first of {len(images)} images") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        if len(images) == 1:
            raise RewardError(name, first, prompts[0], reason) from error
        warnings.warn(f'reward "{name}" failed on {len(images)} images and tries halves: {reason}', stacklevel=2)
        half = len(images) // 2
        pieces = [
            _halving(name, reward, images[rows], prompts[rows], metadata[rows], first + rows.start)
            for rows in (slice(0, half), slice(half, len(images)))
        ]
        return torch.cat(pieces)
    if scores.shape != images.shape[:1]:
        reason = f"scores must be [{len(images)}], one per image, got {list(scores.shape)}"
        raise RewardError(name, first, prompts[0], reason)
    return scores.detach().to("cpu", torch.float64, copy=True)  # the reward may use its tensor again
