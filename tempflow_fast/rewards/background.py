"""Rewards in a separate thread, so that pieces are scored while the next ones are decoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..errors import require
from .base import RewardError, Scores
from .deadline import DaemonThread
from .weighted import WeightedReward

WAITING_BYTES = 2**26
"""Images that may wait for their scores before nothing more is decoded; one piece may, however large it is."""

_streams: dict[torch.device, torch.cuda.Stream] = {}
"""The stream of the rewards on each device: one for all iterations, since allocators and libraries keep blocks and
workspaces for every stream that they have seen."""


class BackgroundScorer:
    """Scores pieces one after another, while its caller continues.

        with BackgroundScorer(reward) as scorer:
            for rows in pieces:
                scorer.submit(policy.decode(latents[rows]), prompts[rows], metadata[rows])
            scores = scorer.collect()

    A thread is enough: torch, the image libraries and the network release the interpreter lock while they work. On an
    accelerator the thread has its own stream, which waits only for the work that makes a piece.

    Args:
        reward: scores the pieces.
    """

    def __init__(self, reward: WeightedReward) -> None:
        self.seconds_busy = 0.0
        """Time that rewards took, whether or not anything waited for it."""
        self._reward = reward
        self._thread = DaemonThread("reward")
        self._pieces: list[tuple[int, Future[Scores]]] = []
        self._num_images = 0
        self._waiting: list[tuple[int, Future[Scores]]] = []  # bytes of the images of a piece without scores

    def submit(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        check: Callable[[], None] | None = None,
    ) -> None:
        """Hands over a piece and returns at once.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.
            check: called in the thread before the reward; what it raises fails the piece. It may wait for the device.

        Raises:
            RewardError: if an earlier piece has failed, or whatever its `check` has raised.
        """
        for first, piece in self._pieces:
            if piece.done() and (error := piece.exception()):
                raise self._renumbered(first, error)
        made = None
        if images.is_cuda:
            made = torch.cuda.current_stream(images.device).record_event()
        piece = self._thread.submit(self._score, images, prompts, metadata, check, made)
        self._pieces.append((self._num_images, piece))
        self._waiting.append((images.nbytes, piece))
        self._num_images += len(images)

    def make_room(self) -> None:
        """Waits until the images that have no scores yet take little memory: where rewards are slower than all that
        makes images, these would pile up."""
        self._waiting = [(size, piece) for size, piece in self._waiting if not piece.done()]
        while len(self._waiting) > 1 and sum(size for size, _ in self._waiting) > WAITING_BYTES:
            wait([self._waiting.pop(0)[1]])

    def collect(self) -> Scores:
        """Waits for the scores of all pieces since the last call.

        Returns:
            The scores in the order of submission.

        Raises:
            RewardError: naming the reward and the sample, counted over all pieces; or whatever a `check` has raised.
            ValueError: if nothing was submitted.
        """
        require(bool(self._pieces), "collect", "pieces", "submitted before", "none")
        pieces, self._pieces, self._num_images = self._pieces, [], 0
        scores = []
        for first, piece in pieces:
            try:
                scores.append(piece.result())
            except RewardError as error:
                raise self._renumbered(first, error) from error
        return Scores.joined(scores)

    def __enter__(self) -> BackgroundScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drops the pieces not yet started; after an error, does not wait for the one in progress."""
        self._thread.close(wait=error is None)

    def _score(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        check: Callable[[], None] | None,
        made: torch.cuda.Event | None,
    ) -> Scores:
        start = time.perf_counter()
        try:
            with self._after(made, images):
                if check is not None:
                    check()
                return self._reward.score(images, prompts, metadata)
        finally:
            self.seconds_busy += time.perf_counter() - start

    @contextmanager
    def _after(self, made: torch.cuda.Event | None, images: Tensor) -> Iterator[None]:
        """Inside this context, work on a GPU has a stream of its own, which waits only for the images."""
        if made is None:
            yield
            return
        if images.device not in _streams:
            _streams[images.device] = torch.cuda.Stream(images.device)
        stream = _streams[images.device]
        with torch.cuda.stream(stream):
            stream.wait_event(made)
            images.record_stream(stream)
            yield

    @staticmethod
    def _renumbered(first: int, error: BaseException) -> BaseException:
        """The error with its sample counted over all pieces."""
        if isinstance(error, RewardError):
            return RewardError(error.name, first + error.sample, error.prompt, error.reason)
        return error
