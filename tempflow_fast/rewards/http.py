"""One HTTP exchange with a reward server, and the faults that it may end in."""

from __future__ import annotations

import json
import time
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from .base import one_line

CHUNK = 1 << 16
MAX_ANSWER = 1 << 26
"""Bytes; scores of a batch are thousands."""
# Straight to the server: a proxy for the world would not know it.
_OPENER = build_opener(ProxyHandler({}))


class PassingError(Exception):
    """An exchange that failed in a way that may pass: worth another try."""


class RefusalError(Exception):
    """A server that says the request itself is at fault: `sample`, or None."""

    def __init__(self, reason: str, sample: int | None) -> None:
        super().__init__(reason)
        self.sample = sample


def exchange(url: str, body: bytes | None, timeout: float) -> bytes:
    """The answer to a POST of `body`, or to a GET without one.

    Args:
        url: where to.
        body: what to send.
        timeout: seconds for the whole exchange, give or take one wait of a socket.

    Raises:
        PassingError: no connection, too slow, half an answer, a status of 500 or more.
        RefusalError: a status of 400 to 499.
    """
    deadline = time.monotonic() + timeout
    try:
        request = Request(url, data=body, headers={"Content-Type": "application/octet-stream"} if body else {})
        with _OPENER.open(request, timeout=timeout) as answer:
            return _read(answer, deadline, timeout)
    except HTTPError as error:
        reason, sample = _told(error)
        if error.code >= 500:
            raise PassingError(f"status {error.code}: {reason}") from error
        raise RefusalError(f"status {error.code}: {reason}", sample) from error
    except (OSError, HTTPException) as error:
        raise PassingError(one_line(f"{type(error).__name__}: {error}")) from error


def _read(answer: HTTPResponse, deadline: float, timeout: float) -> bytes:
    """The whole body; http.client checks its length."""
    pieces, size = [], 0
    while piece := answer.read1(CHUNK):
        pieces.append(piece)
        size += len(piece)
        if time.monotonic() > deadline:
            raise PassingError(f"no whole answer within {timeout} s")
        if size > MAX_ANSWER:
            raise PassingError(f"answer must be at most {MAX_ANSWER} bytes")
    if answer.length:
        raise PassingError(f"half an answer: {answer.length} bytes are missing")
    return b"".join(pieces)


def _told(error: HTTPError) -> tuple[str, int | None]:
    """What the server says of its own fault."""
    try:
        text = error.read(CHUNK)
        answer = json.loads(text)
        sample = answer.get("sample")
        return one_line(answer["error"]), sample if isinstance(sample, int) else None
    except (OSError, HTTPException, ValueError, KeyError, AttributeError, TypeError):
        return one_line(error.reason), None
