"""Rewards that run elsewhere: a client for one or more servers (`tempflow-fast serve-rewards`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ..batching import equal_pieces
from ..errors import fail, finite, integer, require
from . import wire
from .base import FinalError
from .http import PassingError, RefusalError, exchange
from .pixels import as_bytes

MAX_PAUSE = 30.0
"""Longest wait between two rounds, in seconds."""


class Remote:
    """Sends images to servers in batches, one batch at a time to each, and retries until it has their scores.

    A batch that one server cannot score goes to the next; when all have failed, it waits, twice as long in every round.
    Eight rounds from half a second take a minute, in which a server may restart. A server that has just failed is asked
    last, so that one that hangs costs its time once, not for every batch. A permanent failure ends the run, and so does
    a server that suddenly serves another reward.
    """

    name = "remote"
    range: tuple[float, float]

    def __init__(
        self,
        urls: str | Sequence[str],
        batch_size: int = 64,
        request_timeout: float = 120.0,
        num_rounds: int = 8,
        pause: float = 0.5,
    ) -> None:
        """Checks the health of every server, and takes over its range.

        Args:
            urls: of the servers, such as http://127.0.0.1:18080.
            batch_size: largest number of images in a request.
            request_timeout: seconds for a request, after which the next server is asked. The limit of a whole call, all
                batches with their retries, is the setting `timeout` that every reward has.
            num_rounds: how often all servers are tried.
            pause: seconds after the first round.

        Raises:
            ValueError: if an argument is out of range, a server does not answer, or servers serve different rewards.
        """
        self.urls = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        self.batch_size, self.num_rounds = (
            integer("remote", name, value) for name, value in (("batch_size", batch_size), ("num_rounds", num_rounds))
        )
        self.request_timeout = finite("remote", "request_timeout", request_timeout)
        self.pause = finite("remote", "pause", pause)
        for name in ("batch_size", "request_timeout", "num_rounds"):
            require(getattr(self, name) > 0, "remote", name, "positive", getattr(self, name))
        require(self.pause >= 0, "remote", "pause", ">= 0", self.pause)
        wrong = [url for url in self.urls if not _is_address(url)]
        require(bool(self.urls) and not wrong, "remote", "urls", "like http://host:port", wrong)
        self.token = wire.read_token()
        self._failed_until = dict.fromkeys(self.urls, 0.0)
        self._served: dict[str, wire.Identity] = {}
        self.check()

    def check(self) -> None:
        """Checks the health of every server.

        Raises:
            ValueError: if a server does not answer, or servers serve different rewards.
        """
        found = {url: self._health(url) for url in self.urls}
        self._served = {url: identity for url, (identity, _) in found.items()}
        self.range = found[self.urls[0]][1]
        if len({identity.reward for identity in self._served.values()}) > 1:
            served = ", ".join(f"{url}: {identity.reward}" for url, identity in self._served.items())
            fail("remote", "urls", "servers of one reward", served)

    @property
    def served(self) -> str | None:
        """What the servers serve: the reward, and the digests of its settings; None where they do not say it."""
        known = {f"{identity.reward} ({identity.settings})" for identity in self._served.values()}
        return ", ".join(sorted(known)) or None

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
            PassingError, RefusalError: as `exchange`; RefusalError also if the server has come to serve something else.
        """
        answer = exchange(f"{url}/score", body, self.request_timeout, self.token)
        scores, identity = wire.unpack_scores(answer, num)
        if identity != (known := self._served[url]):
            got = identity.reward if identity.reward != known.reward else f"{known.reward} with other settings"
            raise RefusalError(f"it now serves {got}; this run began with {known.reward}", None)
        return scores

    def _insist(self, number: int, body: bytes, rows: slice, stop: threading.Event) -> list[float]:
        """The scores of batch `number`, from the first server that gives them."""
        last, pause = "", self.pause
        for turn in range(self.num_rounds):
            if turn:
                stop.wait(pause)
                pause = min(2 * pause, MAX_PAUSE)
            for url in self._in_turn(number):
                if stop.is_set():
                    break
                try:
                    return self.ask(url, body, rows.stop - rows.start)
                except RefusalError as refusal:
                    sample = refusal.sample if refusal.sample in range(rows.stop - rows.start) else 0
                    raise FinalError(rows.start + sample, f"{url} refused: {refusal}") from refusal
                except (PassingError, ValueError) as fault:
                    last = f"{url}: {fault}"
                    self._failed_until[url] = time.monotonic() + MAX_PAUSE
        raise FinalError(
            rows.start, f"no score from {len(self.urls)} servers in {self.num_rounds} rounds; last, {last}"
        )

    def _in_turn(self, number: int) -> list[str]:
        """The servers in the order in which batch `number` asks them."""
        first, now = number % len(self.urls), time.monotonic()
        return sorted(self.urls[first:] + self.urls[:first], key=lambda url: self._failed_until[url] > now)

    def _health(self, url: str) -> tuple[wire.Identity, tuple[float, float]]:
        try:
            return wire.unpack_health(exchange(f"{url}/health", None, min(self.request_timeout, 10.0), self.token))
        except (PassingError, RefusalError, ValueError) as error:
            fail("remote", "urls", "reward servers that are up", f"{url}: {error}")


def _is_address(url: str) -> bool:
    """Whether a text is like http://host:port."""
    try:
        parts = urlsplit(url)
        is_plain = not (parts.query or parts.fragment or parts.username) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is none
        return False
    return (
        parts.scheme in ("http", "https") and bool(parts.hostname) and is_plain and url.isascii() and url.isprintable()
    )
