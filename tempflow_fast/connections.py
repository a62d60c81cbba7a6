"""Connections on which nothing is said, so that the end of one means that a process or its machine is lost.

A wait in gloo or NCCL for a machine that is off, or behind a cut link, ends only after a long time limit, because a
slow process looks the same. Here the kernel of the other machine answers, no matter how busy the process is.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

PATIENCE = 60.0
"""Seconds in which all processes must have connected."""
ASK_AFTER, ASK_EVERY, ASK_TIMES = 10, 5, 6
"""A machine is lost when it has been silent for `ASK_AFTER` seconds, and then leaves `ASK_TIMES` questions of the
kernel, `ASK_EVERY` seconds apart, without an answer."""
GRACE = 5.0
"""Seconds in which a process may end by itself after a loss: where the wait in progress fails, its error says more."""
GOODBYE = b"."
"""What a process says that leaves the context without an error."""


@contextmanager
def watched(count: int, agree: Callable[[int], int], is_main: bool, lost: str) -> Iterator[None]:
    """Inside this context, the loss of another process ends this one within a minute, with a sentence.

    All processes must enter it together. The first one has a connection to each other one. A process that leaves the
    context without an error is not missed; one that ends otherwise is.

    Args:
        count: how many processes there are.
        agree: returns the maximum of an integer over all processes.
        is_main: whether this is the first one.
        lost: the sentence.

    Raises:
        OSError: if the processes cannot connect.
    """
    with ExitStack() as stack:
        others = [stack.enter_context(other) for other in _connected(count, agree, is_main)]
        over = threading.Event()
        thread = threading.Thread(target=_watch, args=(others, over, lost), name="connections", daemon=True)
        thread.start()
        try:
            yield
            for other in others:
                with suppress(OSError):  # it is lost, which does not matter any more
                    other.sendall(GOODBYE)
        finally:
            over.set()
            for other in others:
                with suppress(OSError):
                    other.shutdown(socket.SHUT_RDWR)  # wakes the thread
            thread.join()


def _connected(count: int, agree: Callable[[int], int], is_main: bool) -> list[socket.socket]:
    """The connections of this process: those from all others in the first one, else the one to the first one."""
    if is_main:
        both = socket.has_dualstack_ipv6()
        family, address = (socket.AF_INET6, "::") if both else (socket.AF_INET, "")
        with socket.create_server((address, 0), family=family, dualstack_ipv6=both, backlog=count) as server:
            server.settimeout(PATIENCE)
            agree(server.getsockname()[1])
            return [_asked(server.accept()[0]) for _ in range(count - 1)]
    port = agree(0)
    return [_asked(socket.create_connection((os.environ.get("MASTER_ADDR", "127.0.0.1"), port), timeout=PATIENCE))]


def _asked(connection: socket.socket) -> socket.socket:
    """A connection that fails when the other machine does not answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", ASK_AFTER), ("TCP_KEEPINTVL", ASK_EVERY), ("TCP_KEEPCNT", ASK_TIMES)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _watch(others: list[socket.socket], over: threading.Event, lost: str) -> None:
    """Ends this process when one of the others is lost; returns when it is `over`, or all others have said goodbye."""
    with selectors.DefaultSelector() as selector:
        for other in others:
            selector.register(other, selectors.EVENT_READ, data=other)
        while selector.get_map() and not over.is_set():
            for key, _ in selector.select():
                if _is_goodbye(key.data):
                    selector.unregister(key.data)
                elif not over.wait(GRACE):
                    print(f"\n{lost}", file=sys.stderr, flush=True)  # a progress bar has not ended its line
                    os._exit(1)  # the main thread may be inside a wait that no exception reaches


def _is_goodbye(other: socket.socket) -> bool:
    try:
        return other.recv(1) == GOODBYE
    except OSError:
        return False
