"""Rewards over loopback: a real server, a real client, and every fault that can occur between them."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from support.servers import ENTRIES, EXPECTED, TEXTS, FaultyServer, client, images, running

from tempflow_fast.rewards import RewardError, get_reward
from tempflow_fast.rewards.base import FinalError
from tempflow_fast.rewards.remote import Remote


def test_scores_arrive_in_order_from_batches_and_from_several_servers():
    with running(FaultyServer(), FaultyServer()) as (one, two):
        remote = client(one, two, batch_size=3)
        assert remote.range == (0.0, 11.0)
        assert torch.allclose(remote(images(), TEXTS, ENTRIES), EXPECTED)
        assert len(one.played) == len(two.played) == 3  # a health check and two of the four batches
        reward = get_reward({"far": {"reward": "remote", "urls": [one.url, two.url]}, "near": {"reward": "shapes"}})
        assert list(reward.rewards) == ["far", "near"]


@pytest.mark.parametrize("fault", ["500", "half", "count", "nan", "garbage", "close", "slow", "dribble"])
def test_a_passing_fault_is_tried_again(fault):
    with running(FaultyServer(fault, fault)) as server:
        remote = client(server, request_timeout=0.3 if fault in ("slow", "dribble") else 5.0)
        assert torch.allclose(remote(images(), TEXTS, ENTRIES), EXPECTED)
        assert server.played.count(fault) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "status 500: out of memory"),
        ("half", "incomplete answer: .* bytes are missing"),
        ("count", "scores must be 5 numbers, got 4"),
        ("nan", "scores must be finite, got nan"),
        ("garbage", "body must be JSON with scores or health, got b'<html>'"),
        ("close", "RemoteDisconnected"),
        ("slow", "no complete answer within 0.3 s"),
        ("dribble", "no complete answer within 0.3 s"),
    ],
)
def test_a_lasting_fault_ends_the_run_with_a_name_a_sample_and_a_reason(fault, reason):
    timeout = 0.3 if fault in ("slow", "dribble") else 5.0
    with running(FaultyServer("none", *[fault] * 9)) as server:
        reward = get_reward(client(server, batch_size=5, num_rounds=2, request_timeout=timeout))
        message = (
            rf'reward "remote" failed on sample 5 \(prompt .prompt 5.\): no score .* in 2 rounds; last, .*{reason}'
        )
        with pytest.raises(RewardError, match=message):
            reward(images(), TEXTS, ENTRIES)


def test_a_server_that_stays_away_ends_the_run_with_a_name_and_a_sample():
    with running(FaultyServer()) as server:
        reward = get_reward(client(server, num_rounds=3))
    with pytest.raises(RewardError, match=r'"remote" failed on sample 0 .* in 3 rounds; last, http://\S+: .*refused'):
        reward(images(), TEXTS, ENTRIES)


def test_pauses_between_rounds_double_up_to_half_a_minute():
    class Clock:
        pauses: list[float] = []  # noqa: RUF012

        def wait(self, seconds: float) -> None:
            self.pauses.append(seconds)

        def is_set(self) -> bool:
            return False

    with running(FaultyServer(), FaultyServer()) as servers:
        remote = client(*servers, pause=4.0, num_rounds=6)
    with pytest.raises(FinalError, match="no score from 2 servers in 6 rounds"):
        remote._insist(0, b"", slice(0, 1), Clock())
    assert Clock.pauses == [4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_batch_goes_to_the_next_server_at_once():
    with running(FaultyServer(*["500"] * 20), FaultyServer()) as (broken, well):
        start = time.perf_counter()
        assert torch.allclose(client(broken, well, batch_size=2, pause=30)(images(), TEXTS, ENTRIES), EXPECTED)
        assert time.perf_counter() - start < 10
        assert 1 <= broken.played.count("500") <= 2, "once it has failed, it is asked last"


def test_a_server_that_is_gone_when_training_begins_is_named():
    with running(FaultyServer()) as server:
        url = server.url
    with pytest.raises(ValueError, match=f"remote: urls must be reward servers that are up, got {url}: .*refused"):
        Remote(url)
    servers = FaultyServer(), FaultyServer(reward="shapes")
    with (
        running(*servers),
        pytest.raises(ValueError, match=r"must be servers of one reward, .* numbered=1, .* shapes=1"),
    ):
        client(*servers)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with running(server), pytest.raises(ValueError, match=r"reward servers that are up, got .* status 501"):
        Remote(f"http://127.0.0.1:{server.server_address[1]}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"urls": []}, "urls must be like http://host:port"),
        ({"urls": "localhost:80"}, "urls must be like http://host:port, got .*localhost:80"),
        ({"urls": "http://localhost:1", "batch_size": 0}, "batch_size must be positive, got 0"),
        ({"urls": "http://localhost:1", "request_timeout": 0}, "request_timeout must be positive, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Remote(**settings)
