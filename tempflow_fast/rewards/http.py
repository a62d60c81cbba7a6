"""One HTTP exchange with a reward server, and how it can fail."""

from __future__ import annotations

import json
import time
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from .base import one_line

CHUNK = 1 << 16
MAX_ANSWER = 1 << 26
"""In bytes; the scores of a batch are thousands."""
# Directly to the server: a proxy to the internet would not know it.
_OPENER = build_opener(ProxyHandler({}))


class PassingError(Exception):
    """A temporary failure of an exchange, which is worth a retry."""


class RefusalError(Exception):
    """A server refused a request.

    Args:
        reason: what the server says.
        sample: the index of the sample at fault; None if the server names none.
    """

    def __init__(self, reason: str, sample: int | None) -> None:
        super().__init__(reason)
        self.sample = sample


def exchange(url: str, body: bytes | None, timeout: float) -> bytes:
    """One request and its answer.

    Args:
        url: the address.
        body: sent by POST; None: the request is a GET.
        timeout: seconds for the whole exchange, plus at most one wait of a socket.

    Returns:
        The body of the answer.

    Raises:
        PassingError: if there is no connection, the answer is too slow or incomplete, or the status is 500 or more.
        RefusalError: if the status is 400 to 499.
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
            raise PassingError(f"no complete answer within {timeout} s")
        if size > MAX_ANSWER:
            raise PassingError(f"answer must be at most {MAX_ANSWER} bytes")
    if answer.length:
        raise PassingError(f"incomplete answer: {answer.length} bytes are missing")
    return b"".join(pieces)


def _told(error: HTTPError) -> tuple[str, int | None]:
    """The reason and the sample in the answer to a failed request."""
    try:
        text = error.read(CHUNK)
        answer = json.loads(text)
        sample = answer.get("sample")
        return one_line(answer["error"]), sample if isinstance(sample, int) else None
    except (OSError, HTTPException, ValueError, KeyError, AttributeError, TypeError):
        return one_line(error.reason), None
