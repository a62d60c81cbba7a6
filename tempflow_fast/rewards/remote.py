"""Rewards that run elsewhere: a client for one or more servers (`tempflow-fast serve-rewards`)."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..batching import equal_pieces
from ..errors import fail, require
from . import wire
from .base import FinalError
from .http import PassingError, RefusalError, exchange
from .pixels import as_bytes

MAX_PAUSE = 30.0
"""Longest wait between two rounds, in seconds."""


class Remote:
    """Sends images to servers in batches, one batch at a time to each, and retries until it has their scores.

    A batch that one server cannot score goes to the next; when all have failed, it waits, twice as long in every round.
    Eight rounds from half a second take a minute, in which a server may restart. A permanent failure ends the run.
    """

    name = "remote"
    range: tuple[float, float]

    def __init__(
        self,
        urls: str | Sequence[str],
        batch_size: int = 64,
        timeout: float = 120.0,
        num_rounds: int = 8,
        pause: float = 0.5,
    ) -> None:
        """Checks the health of every server, and takes over its range.

        Args:
            urls: of the servers, such as http://127.0.0.1:18080.
            batch_size: largest number of images in a request.
            timeout: seconds for a request.
            num_rounds: how often all servers are tried.
            pause: seconds after the first round.

        Raises:
            ValueError: if an argument is out of range, a server does not answer, or servers serve different rewards.
        """
        self.urls = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        self.batch_size, self.timeout, self.num_rounds, self.pause = batch_size, timeout, num_rounds, pause
        for name in ("batch_size", "timeout", "num_rounds"):
            require(getattr(self, name) > 0, "remote", name, "positive", getattr(self, name))
        wrong = [url for url in self.urls if not url.startswith(("http://", "https://"))]
        require(bool(self.urls) and not wrong, "remote", "urls", "like http://host:port", wrong)
        self.check()

    def check(self) -> None:
        """Checks the health of every server.

        Raises:
            ValueError: if a server does not answer, or servers serve different rewards.
        """
        healths = [self._health(url) for url in self.urls]
        if len({health["reward"] for health in healths}) > 1:
            served = ", ".join(f"{url}: {health['reward']}" for url, health in zip(self.urls, healths, strict=True))
            fail("remote", "urls", "servers of one reward", served)
        self.range = wire.unpack_range(healths[0]["range"])

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float64 [R] on the host; images are sent as bytes.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            FinalError: if an image gets no score.
        """
        levels = as_bytes(images).cpu()
        pieces = equal_pieces(len(levels), self.batch_size)
        bodies = [self.pack(levels[rows], prompts[rows], metadata[rows]) for rows in pieces]
        stop = threading.Event()
        threads = ThreadPoolExecutor(len(self.urls), thread_name_prefix="remote")
        try:
            jobs = [
                threads.submit(self._insist, number, body, rows, stop)
                for number, (body, rows) in enumerate(zip(bodies, pieces, strict=True))
            ]
            return torch.tensor([score for job in jobs for score in job.result()], dtype=torch.float64)
        finally:
            stop.set()  # after a failure, do not wait for the others
            threads.shutdown(wait=False, cancel_futures=True)

    def pack(self, levels: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> bytes:
        """The body of a request.

        Args:
            levels: uint8 [R, 3, H, W] on the host.
            prompts: R texts.
            metadata: R entries of the prompt set.
        """
        return wire.pack_request(levels, prompts, metadata)

    def ask(self, url: str, body: bytes, num: int) -> list[float]:
        """One server's scores.

        Args:
            url: of the server.
            body: of the request.
            num: number of images in it.

        Raises:
            ValueError: if the answer has another form.
            PassingError, RefusalError: as `exchange`.
        """
        return wire.unpack_scores(exchange(f"{url}/score", body, self.timeout), num)

    def _insist(self, number: int, body: bytes, rows: slice, stop: threading.Event) -> list[float]:
        """The scores of batch `number`, from the first server that gives them."""
        last, pause = "", self.pause
        for turn in range(self.num_rounds * len(self.urls)):
            if turn and turn % len(self.urls) == 0:
                stop.wait(pause)
                pause = min(2 * pause, MAX_PAUSE)
            if stop.is_set():
                break
            url = self.urls[(number + turn) % len(self.urls)]
            try:
                return self.ask(url, body, rows.stop - rows.start)
            except RefusalError as refusal:
                sample = refusal.sample if refusal.sample in range(rows.stop - rows.start) else 0
                raise FinalError(rows.start + sample, f"{url} refused: {refusal}") from refusal
            except (PassingError, ValueError) as fault:
                last = f"{url}: {fault}"
        raise FinalError(
            rows.start, f"no score from {len(self.urls)} servers in {self.num_rounds} rounds; last, {last}"
        )

    def _health(self, url: str) -> dict[str, Any]:
        try:
            health = json.loads(exchange(f"{url}/health", None, min(self.timeout, 10.0)))
            require(health["protocol"] == wire.PROTOCOL, "remote", "protocol", f"{wire.PROTOCOL}", health["protocol"])
            wire.unpack_range(health["range"])
        except (PassingError, RefusalError, ValueError, KeyError, TypeError) as error:
            fail("remote", "urls", "reward servers that are up", f"{url}: {error}")
        return health
