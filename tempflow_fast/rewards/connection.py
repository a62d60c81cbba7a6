"""One connection to a reward server: a request is read within limits, and each that breaks the protocol gets a 4xx."""

from __future__ import annotations

import hmac
import io
import json
import time
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from .base import one_line
from .http import authorization
from .timed import TimedReader

if TYPE_CHECKING:
    from .server import RewardServer

MAX_BODY = 1 << 30
"""Largest request in bytes."""
MAX_HEAD = 1 << 17
"""Bytes of a request line and its headers."""
PATIENCE = 10.0
"""Seconds to send a request's head, or to take its answer."""
QUEUE = 60.0
"""Seconds that a body waits on its client's side for room in the server's memory."""
SLOWEST = 1 << 20
"""Bytes per second of the slowest body; its first seconds are `PATIENCE`."""
LINGER = 1.0
"""Seconds to throw away what a refused client still sends, or it would lose the answer with the connection."""


class Handler(BaseHTTPRequestHandler):
    """Reads one request and answers it with JSON."""

    server: RewardServer
    raw_requestline: bytes
    default_request_version = "HTTP/1.0"
    """Of a request that names none, or it would be refused without a status."""

    def setup(self) -> None:
        """Replaces the connection's reader by one with a deadline."""
        super().setup()
        self.rfile.close()
        self._bytes = TimedReader(self.connection, time.monotonic() + PATIENCE, MAX_HEAD)
        self.rfile = io.BufferedReader(self._bytes)

    def parse_request(self) -> bool:
        """Returns whether the request's head is one that can be answered; otherwise it has been refused."""
        words = self.raw_requestline.split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):  # HTTP/0.9 would be answered without a status
            self.requestline, self.request_version, self.command = "", "HTTP/1.0", ""
            self.send_error(400, "not a request of HTTP/1")
            return False
        if not super().parse_request():
            return False
        wanted = authorization(self.server.token).get("Authorization", "")
        got = self.headers.get("Authorization", "") if wanted else ""
        if not hmac.compare_digest(got.encode("utf-8", "replace"), wanted.encode()):
            self._refuse(401, "the token of this server must be sent, as the variable TEMPFLOW_FAST_TOKEN has it")
            return False
        return True

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, self.server.health)
        else:
            self._refuse(404, f"GET /health or POST /score, got {one_line(self.path)}")

    def do_POST(self) -> None:
        if self.path != "/score":
            self._refuse(404, f"GET /health or POST /score, got {one_line(self.path)}")
            return
        length = self._length()
        if length is None:
            return
        if not self.server.open_bytes.take(length, QUEUE):
            self._refuse(503, "too many bytes of other requests are open")
            return
        try:
            body = self._body(length)
            if body is not None:
                self._send(*self.server.answer(body))
        finally:
            self.server.open_bytes.give(length)

    def _length(self) -> int | None:
        """The announced number of bytes; None: it has been refused."""
        told = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not told:
            self._refuse(411, "the length of the body must be announced, by Content-Length alone")
        elif len(told) > 1 or not (told[0].isascii() and told[0].isdigit()):
            self._refuse(400, f"Content-Length must be one number, got {one_line(', '.join(told), 80)}")
        elif len(told[0]) > len(str(MAX_BODY)) or int(told[0]) > MAX_BODY:
            self._refuse(413, f"a body must have at most {MAX_BODY} bytes")
        else:
            return int(told[0])
        return None

    def _body(self, length: int) -> bytes | None:
        """The body; None: it has been refused."""
        self._bytes.deadline, self._bytes.allowance = time.monotonic() + PATIENCE + length / SLOWEST, length
        try:
            body = self.rfile.read(length) if length else b""
        except TimeoutError:
            self._refuse(408, f"no body of {length} bytes in time")
            return None
        if len(body) < length:
            self._refuse(400, f"a body of {length} bytes was announced, got {len(body)}")
            return None
        return body

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses what the library cannot read.

        Args:
            code: of HTTP; the library has 5xx for methods and versions that it does not know, our client's fault.
            message: what is wrong.
            explain: more of it.
        """
        self._refuse(code if code < 500 else 405, f"GET /health or POST /score: {one_line(message or explain)}")

    def _refuse(self, status: int, reason: str) -> None:
        self._send(status, {"error": reason, "sample": None})
        self.close_connection = True
        self._bytes.deadline, self._bytes.allowance = time.monotonic() + LINGER, MAX_BODY
        try:
            while self.rfile.read1(MAX_HEAD):
                pass
        except (OSError, HTTPException):
            pass

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.connection.settimeout(PATIENCE)
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: a line per batch would not help."""
