"""A server of one reward for `remote` clients (see `wire`)."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from . import wire
from .base import RewardError, one_line
from .registry import Spec, get_reward
from .weighted import WeightedReward

MAX_BODY = 1 << 30
"""Largest request in bytes."""
PORT = 18080


def serve_rewards(reward: Spec, host: str = "127.0.0.1", port: int = PORT) -> None:
    """Serves a reward until Ctrl-C.

    Args:
        reward: as for `get_reward`.
        host: address to listen on; 0.0.0.0 admits other machines, all of them: there is no password.
        port: port to listen on; 0: any free one.

    Raises:
        ValueError: if the reward is unknown.
        OSError: if the port is in use.
    """
    with RewardServer(get_reward(reward), host, port) as server:
        print(f"serving {server.reward.name} at {server.url}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: RewardServer
    timeout = 60
    """Seconds to wait for a silent client."""

    def do_GET(self) -> None:
        if self.path != "/health":
            self._send(404, {"error": f"GET /health or POST /score, got {one_line(self.path)}", "sample": None})
            return
        reward = self.server.reward
        health = {"protocol": wire.PROTOCOL, "reward": reward.name, "range": wire.pack_range(reward.range)}
        self._send(200, health)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/score":
            self._send(404, {"error": f"GET /health or POST /score, got {one_line(self.path)}", "sample": None})
        elif not length.isdigit() or int(length) > MAX_BODY:
            self._send(413, {"error": f"a body of at most {MAX_BODY} bytes must be announced", "sample": None})
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                self._send(*self.server.answer(body))

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: a line per batch would not help."""


class RewardServer(ThreadingHTTPServer):
    """Listens once it is made; `serve_forever` answers. Requests are read concurrently and scored one at a time.

    Args:
        reward: scores the images.
        host: address to listen on.
        port: port to listen on; 0: any free one.
    """

    daemon_threads = True
    handler: type[BaseHTTPRequestHandler] = Handler

    def __init__(self, reward: WeightedReward, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), self.handler)
        self.reward, self.turn = reward, threading.Lock()

    @property
    def url(self) -> str:
        """The server's address."""
        address: Any = self.server_address  # declared for every family of sockets
        host, port = address[:2]
        return f"http://{host}:{port}"

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Answers a request for scores.

        Args:
            body: of the request.

        Returns:
            Status and answer.
        """
        try:
            images, prompts, metadata = wire.unpack_request(body)
        except ValueError as error:
            return 400, {"error": str(error), "sample": None}
        try:
            with self.turn:
                scores = self.reward(images, prompts, metadata)
        except RewardError as error:
            return 422, {"error": str(error), "sample": error.sample}
        except Exception as error:
            return 500, {"error": one_line(f"{type(error).__name__}: {error}")}
        return 200, {"scores": scores.tolist()}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports errors other than a client that disconnected."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"serve-rewards: {one_line(repr(error))}", file=sys.stderr)
