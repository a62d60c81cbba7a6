"""Clients that break the protocol get a 4xx in time, and none of them takes a server's memory or threads."""

from __future__ import annotations

import json
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.hostile import BODY, answered, attack, posted
from support.servers import TEXTS, client, numbered, running

from tempflow_fast.rewards import connection as connections
from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards import server as servers
from tempflow_fast.rewards.http import RefusalError, exchange
from tempflow_fast.rewards.remote import Remote
from tempflow_fast.rewards.server import RewardServer
from tempflow_fast.rewards.wire import unpack_range, unpack_scores

DEEP = b"[" * 100_000
TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /health\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
        (b"GET /health HP/1.1\r\n\r\n", 400),
        (b"PUT /score HTTP/1.1\r\n\r\n", 405),
        (b"GET /health HTTP/2.0\r\n\r\n", 400),
        (b"GET /health HTTP/0.9\r\n\r\n", 400),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (posted(b"", "X: y"), 411),
        (posted(BODY, f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"), 411),
        (posted(b"", "Content-Length: \u00b2"), 400),
        (posted(b"", "Content-Length: -1"), 400),
        (posted(b"", "Content-Length: 1", "Content-Length: 2"), 400),
        (posted(b"", "Content-Length: " + "9" * 5000), 413),
        (posted(b"", "Content-Length: 2000000000"), 413),
        (posted(b"half", "Content-Length: 5"), 400),
        (posted(b""), 400),
        (posted(DEEP), 400),
        (posted(BODY, path="/other"), 404),
    ],
)
def test_what_breaks_the_protocol_gets_a_4xx(request_, status):
    with running(RewardServer(get_reward(numbered))) as server:
        got, body = answered(server, request_)
        assert (got, set(json.loads(body))) == (status, {"error", "sample"})


@pytest.mark.filterwarnings("ignore:reward .* tries halves")
def test_mutated_requests_get_an_answer_each():
    assert attack(seconds=20, seed=0, most=300).total() == 300


def test_a_slow_client_is_dropped_and_too_many_are_sent_away(monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    monkeypatch.setattr(servers, "MAX_CONNECTIONS", 2)
    with running(RewardServer(get_reward(numbered))) as server:
        start = time.monotonic()
        slow = [socket.create_connection(server.server_address[:2], timeout=5) for _ in range(3)]
        slow[0].sendall(b"GET /hea")
        slow[1].sendall(posted(b"x", "Content-Length: 9"))
        assert b" 503 " in slow[2].recv(1 << 10)
        assert slow[0].recv(1 << 10) == b""
        assert b" 408 " in slow[1].recv(1 << 10)
        assert time.monotonic() - start < 4
        assert all(one.close() is None for one in slow)


def test_bodies_wait_until_there_is_room(monkeypatch):
    monkeypatch.setattr(servers, "MAX_OPEN_BYTES", len(BODY))
    monkeypatch.setattr(connections, "QUEUE", 0.1)
    with running(RewardServer(get_reward(numbered))) as server:
        server.open_bytes.take(1, 0)
        assert answered(server, posted(BODY))[0] == 503
        server.open_bytes.give(1)
        assert answered(server, posted(BODY))[0] == answered(server, posted(BODY))[0] == 200


def test_an_address_for_others_needs_a_token_and_so_do_its_clients(monkeypatch):
    monkeypatch.delenv("TEMPFLOW_FAST_TOKEN", raising=False)
    with pytest.raises(ValueError, match="host must be loopback, or TEMPFLOW_FAST_TOKEN be set"):
        RewardServer(get_reward(numbered), "0.0.0.0")
    with running(RewardServer(get_reward(numbered), token=TOKEN)) as server:
        with pytest.raises(ValueError, match="status 401: the token of this server"):
            Remote(server.url)
        monkeypatch.setenv("TEMPFLOW_FAST_TOKEN", TOKEN)
        assert client(server).range == (0.0, 11.0)
    monkeypatch.setenv("TEMPFLOW_FAST_TOKEN", "short")
    with pytest.raises(ValueError, match="TEMPFLOW_FAST_TOKEN must be at least 16"):
        Remote(server.url)


@pytest.mark.parametrize(
    "scores", ["[true]", '["1"]', "[null]", "[1e999]", "[" + "9" * 400 + "]", "{}", "1", "[]", DEEP.decode()]
)
def test_answers_that_are_no_numbers_are_refused(scores):
    with pytest.raises(ValueError, match="unpack_scores"):
        unpack_scores(f'{{"scores": {scores}, "reward": "x", "settings": ""}}'.encode(), 1)


@pytest.mark.parametrize("ends", [[float("nan"), 1], [1, 0], [True, 2], ["0", 1], [0], None])
def test_ranges_that_are_none_are_refused(ends):
    with pytest.raises(ValueError, match="unpack"):
        unpack_range(ends)


class Redirect(BaseHTTPRequestHandler):
    """Sends every client to another address."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://127.0.0.1:1/health")
        self.end_headers()

    def log_message(self, format: str, *args) -> None:
        pass


def test_redirects_are_not_followed():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
    with running(server), pytest.raises(RefusalError, match="status 302: Found: redirects are not followed"):
        exchange(f"http://127.0.0.1:{server.server_address[1]}/health", None, 5.0)


def test_a_server_that_serves_something_else_ends_the_run():
    with running(RewardServer(get_reward(numbered))) as server:
        remote = client(server)
        server.identity = {**server.identity, "reward": "shapes=1"}
        with pytest.raises(RefusalError, match="it now serves shapes=1; this run began with numbered=1"):
            remote.ask(server.url, BODY, len(TEXTS))
        assert exchange(server.url + "/health", None, 5.0)
