"""Requests and answers that no honest side of the rewards' protocol sends.

    python -m support.hostile --seconds 600 --seed 1

from tests/ sends mutated requests to a real server, and prints how many of them got which status.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import socket
import time

from support.servers import ENTRIES, TEXTS, numbered, running
from support.servers import images as pictures
from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.http import exchange
from tempflow_fast.rewards.pixels import as_bytes
from tempflow_fast.rewards.server import RewardServer
from tempflow_fast.rewards.wire import pack_request

BODY = pack_request(as_bytes(pictures()), TEXTS, ENTRIES)
PIECES = (b"\r\n", b"\0", b"\xff" * 9, b"9" * 5000, "²".encode("latin-1"), b"[" * 5000, b"-1", b": ", b"HTTP/0.9")


def posted(body: bytes, *headers: str, path: str = "/score") -> bytes:
    """The bytes of a request."""
    lines = [f"POST {path} HTTP/1.1", *(headers or (f"Content-Length: {len(body)}",))]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def answered(server: RewardServer, request: bytes, seconds: float = 5.0) -> tuple[int, bytes]:
    """Sends bytes and closes that direction; returns the status, 0 if the server closed without one, and the body."""
    with socket.create_connection(server.server_address[:2], timeout=seconds) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has answered before the end
        answer = b""
        try:
            while piece := connection.recv(1 << 16):
                answer += piece
        except ConnectionResetError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", head)
    return (int(found[1]) if found else 0), body


def mutated(rng: random.Random) -> bytes:
    """A request with a few faults, or only noise."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(600))
    request = bytearray(posted(BODY) if rng.random() < 0.8 else b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(min(len(request), rng.choice((60, 600, 10**9))) or 1)
        kind = rng.randrange(4)
        if kind == 0 and request:
            request[min(place, len(request) - 1)] = rng.randrange(256)
        elif kind == 1:
            del request[place : place + rng.choice((1, 7, 300))]
        elif kind == 2:
            request[place:place] = rng.choice(PIECES)
        else:
            del request[place:]
    return bytes(request)


def attack(seconds: float, seed: int, most: int = 10**9) -> collections.Counter[int]:
    """Sends mutated requests for a time, and asks for the server's health and right scores in between and at the end.

    Returns:
        Status -> number of requests; 0: closed without a status.
    """
    rng, statuses = random.Random(seed), collections.Counter()
    with running(RewardServer(get_reward(numbered))) as server:
        end = time.monotonic() + seconds
        while time.monotonic() < end and statuses.total() < most:
            request = mutated(rng)
            status, body = answered(server, request)
            assert status < 500 or (status == 500 and b"4 by 6" in body), (status, body, request[:300])
            assert not request or isinstance(json.loads(body), dict), (status, body, request[:300])
            statuses[status] += 1
            if statuses.total() % 100 == 0:
                assert b"protocol" in exchange(server.url + "/health", None, 5.0)
        assert len(json.loads(exchange(server.url + "/score", BODY, 5.0))["scores"]) == len(TEXTS)
    return statuses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts = attack(options.seconds, options.seed)
    print(f"{counts.total()} requests:", dict(sorted(counts.items())))
