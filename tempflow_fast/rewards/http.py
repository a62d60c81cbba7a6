"""One HTTP exchange with a reward server, and how it can fail."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from .base import one_line
from .timed import TimedReader, set_timeout

CHUNK = 1 << 16
MAX_ANSWER = 1 << 26
"""In bytes; the scores of a batch are thousands."""
MAX_HEAD = 1 << 20
"""Bytes of an answer's status and headers."""
PASSING = (408, 429)
"""Statuses below 500 that are worth a retry: too slow, too many."""


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


def exchange(url: str, body: bytes | None, timeout: float, token: str | None = None) -> bytes:
    """One request and its answer, directly to the server: no proxy is asked and no redirect followed.

    Args:
        url: the address.
        body: sent by POST; None: the request is a GET.
        timeout: seconds for the whole exchange.
        token: the server's secret, if it has one.

    Returns:
        The body of the answer.

    Raises:
        PassingError: if there is no connection, the answer is too slow, too long or incomplete, or the status is 500 or
            more, or one of `PASSING`.
        RefusalError: for any other status but 200.
    """
    parts = urlsplit(url)
    deadline = time.monotonic() + timeout
    kind = _SecureConnection if parts.scheme == "https" else _Connection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    connection.deadline = deadline
    headers = {"Content-Type": "application/octet-stream"} if body is not None else {}
    try:
        path = parts.path or "/"
        connection.request("GET" if body is None else "POST", path, body, {**headers, **authorization(token)})
        answer = connection.getresponse()
        if answer.status != 200:
            _raise(answer)
        return _read(answer, MAX_ANSWER)
    except TimeoutError as error:
        raise PassingError(f"timed out: no complete answer within {timeout:g} s") from error
    except (OSError, HTTPException) as error:
        raise PassingError(one_line(f"{type(error).__name__}: {error}")) from error
    finally:
        connection.close()


def authorization(token: str | None) -> Mapping[str, str]:
    """The header that shows a token.

    Args:
        token: the secret; None: there is none.
    """
    return {} if token is None else {"Authorization": f"Bearer {token}"}


class _TimedSocket:
    """What http.client needs of a socket, each operation within a deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def sendall(self, data: bytes) -> None:
        set_timeout(self._connection, self._deadline)
        self._connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(TimedReader(self._connection, self._deadline, MAX_HEAD + MAX_ANSWER))

    def close(self) -> None:
        self._connection.close()


class _Connection(HTTPConnection):
    deadline = 0.0

    def connect(self) -> None:
        super().connect()
        self.sock: Any = _TimedSocket(self.sock, self.deadline)


class _SecureConnection(HTTPSConnection):
    deadline = 0.0

    def connect(self) -> None:
        super().connect()
        self.sock: Any = _TimedSocket(self.sock, self.deadline)


def _read(answer: HTTPResponse, limit: int) -> bytes:
    """The whole body; http.client checks its length."""
    pieces, size = [], 0
    while piece := answer.read1(CHUNK):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise PassingError(f"answer must be at most {limit} bytes")
    if answer.length:
        raise PassingError(f"incomplete answer: {answer.length} bytes are missing")
    return b"".join(pieces)


def _raise(answer: HTTPResponse) -> None:
    """Raises the error of an answer that is not 200, with the reason and the sample that it names."""
    reason, sample = one_line(answer.reason), None
    try:
        told = json.loads(_read(answer, CHUNK))
        if isinstance(told, dict):
            reason = one_line(told.get("error", reason))
            sample = told.get("sample") if type(told.get("sample")) is int else None
    except (ValueError, RecursionError, PassingError):
        pass  # not our server; the status says enough
    if 300 <= answer.status < 400:
        reason = f"{reason}: redirects are not followed"
    if answer.status >= 500 or answer.status in PASSING:
        raise PassingError(f"status {answer.status}: {reason}")
    raise RefusalError(f"status {answer.status}: {reason}", sample)
