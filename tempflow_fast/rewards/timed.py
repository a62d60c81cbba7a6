"""A socket's bytes within a time and a number: the other side cannot keep a reader for ever, drop by drop."""

from __future__ import annotations

import io
import socket
import time
from http.client import HTTPException
from typing import Any


class TimedReader(io.RawIOBase):
    """Reads from a socket until a deadline; `deadline` and `allowance` may be set anew between two reads.

    Args:
        connection: the socket.
        deadline: in seconds of `time.monotonic`.
        allowance: number of bytes that may be read.
    """

    def __init__(self, connection: socket.socket, deadline: float, allowance: int) -> None:
        self.deadline, self.allowance = deadline, allowance
        self._connection = connection
        self._raw: Any = connection.makefile("rb", buffering=0)  # keeps the socket open until this is closed

    def readable(self) -> bool:
        """Returns True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fills a buffer with what has come, and returns the number of bytes; 0: the other side has closed.

        Args:
            buffer: to be filled.

        Raises:
            TimeoutError: after the deadline.
            HTTPException: beyond the allowance.
        """
        if self.allowance <= 0:
            raise HTTPException("more bytes than allowed")
        set_timeout(self._connection, self.deadline)
        number: int = self._raw.readinto(memoryview(buffer)[: self.allowance])
        self.allowance -= number
        return number

    def close(self) -> None:
        """Lets go of the socket."""
        self._raw.close()
        super().close()


def set_timeout(connection: socket.socket, deadline: float) -> None:
    """Gives the next operation of a socket the time that is left.

    Args:
        connection: the socket.
        deadline: in seconds of `time.monotonic`.

    Raises:
        TimeoutError: if none is left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    connection.settimeout(left)
