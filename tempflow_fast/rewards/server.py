"""A server of one reward for `remote` clients (see `wire`)."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import secrets
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from ..errors import fail, integer, require
from . import wire
from .base import RewardError, one_line
from .connection import MAX_BODY, Handler
from .registry import Spec, get_reward
from .weighted import WeightedReward

PORT = 18080
MAX_CONNECTIONS = 128
"""Each has a thread; further clients are told to come back."""
MAX_OPEN_BYTES = MAX_BODY
"""Bytes of all requests that are being read or wait for their turn; further bodies wait on their client's side."""


def serve_rewards(reward: Spec, host: str = "127.0.0.1", port: int = PORT) -> None:
    """Serves a reward until Ctrl-C.

    Args:
        reward: as for `get_reward`.
        host: address to listen on. Any other than this machine's own (loopback) needs a token: the environment variable
            TEMPFLOW_FAST_TOKEN, equal here and where the clients run.
        port: port to listen on; 0: any free one.

    Raises:
        ValueError: if the reward is unknown, the port is none, or the address needs a token.
        OSError: if the port is in use.
    """
    settings = "" if callable(reward) else json.dumps(reward, sort_keys=True, default=str)
    with RewardServer(get_reward(reward), host, port, wire.read_token(), settings) as server:
        print(f"serving {server.reward.name} at {server.url}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", file=sys.stderr)


class RewardServer(ThreadingTCPServer):
    """Listens once it is made; `serve_forever` answers. Requests are read concurrently and scored one at a time.

    Args:
        reward: scores the images.
        host: address to listen on.
        port: port to listen on; 0: any free one.
        token: a secret that every client must send; None: there is none, which only loopback addresses allow.
        settings: the reward's description, from which clients see that it has changed.

    Raises:
        ValueError: if the port is none, or the address needs a token.
        OSError: if the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = MAX_CONNECTIONS
    handler: type[BaseHTTPRequestHandler] = Handler

    def __init__(
        self,
        reward: WeightedReward,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        settings: str = "",
    ) -> None:
        is_port = 0 <= integer("serve_rewards", "port", port) < 1 << 16
        require(is_port, "serve_rewards", "port", "from 0 to 65535", port)
        if token is None and not _is_loopback(host):
            expected = f"loopback, or {wire.TOKEN} be set here and for the clients: export {wire.TOKEN}="
            fail("serve_rewards", "host", expected + secrets.token_hex(16), repr(host))
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), self.handler)
        self.reward, self.turn, self.token = reward, threading.Lock(), token
        self.open_bytes = Budget(MAX_OPEN_BYTES)
        self._connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        digest = hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()
        self.identity = wire.Identity(wire.described(reward.weights), digest)._asdict()

    @property
    def url(self) -> str:
        """The server's address."""
        address: Any = self.server_address  # declared for every family of sockets
        host, port = address[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def health(self) -> dict[str, Any]:
        """The answer to GET /health."""
        return {"protocol": wire.PROTOCOL, **self.identity, "range": wire.pack_range(self.reward.range)}

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Answers a request for scores.

        Args:
            body: of the request.

        Returns:
            Status and answer.
        """
        with self.turn:  # images take more room than their bytes
            try:
                images, prompts, metadata = wire.unpack_request(body)
            except ValueError as error:
                return 400, {"error": one_line(error), "sample": None}
            try:
                scores = self.reward(images, prompts, metadata)
            except RewardError as error:
                return 422, {"error": str(error), "sample": error.sample}
            except Exception as error:
                return 500, {"error": one_line(f"{type(error).__name__}: {error}")}
        return 200, {"scores": scores.tolist(), **self.identity}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives a connection its thread, or tells it to come back.

        Args:
            request: the socket.
            client_address: whose it is.
        """
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        request.setblocking(False)
        body = b'{"error": "too many connections"}'
        with suppress(OSError):  # it may have gone
            request.send(b"HTTP/1.0 503 Busy\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handles a connection.

        Args:
            request: the socket.
            client_address: whose it is.
        """
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports errors other than a client that disconnected.

        Args:
            request: the socket.
            client_address: whose it is.
        """
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"serve-rewards: {one_line(repr(error))}", file=sys.stderr)


class Budget:
    """A number that many threads take parts of.

    Args:
        total: the number.
    """

    def __init__(self, total: int) -> None:
        self._left, self._changed = total, threading.Condition()

    def take(self, number: int, seconds: float) -> bool:
        """Waits until as much is left, and takes it.

        Args:
            number: how much.
            seconds: the longest wait.

        Returns:
            Whether it was taken.
        """
        with self._changed:
            enough = self._changed.wait_for(lambda: self._left >= number, seconds)
            self._left -= number if enough else 0
            return enough

    def give(self, number: int) -> None:
        """Gives back what was taken.

        Args:
            number: how much.
        """
        with self._changed:
            self._left += number
            self._changed.notify_all()


def _is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address; the empty one is every address."""
    found = socket.getaddrinfo(host or "0.0.0.0", None)
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
