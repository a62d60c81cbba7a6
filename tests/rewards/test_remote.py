"""Rewards over loopback: a real server, a real client, and every fault that the way between them has."""

import json
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness
from torch import Tensor

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.rewards import RewardError, get_reward
from tempflow_fast.rewards.base import FinalError
from tempflow_fast.rewards.flow_grpo_server import plain
from tempflow_fast.rewards.remote import Remote
from tempflow_fast.rewards.server import Handler, RewardServer, serve_rewards

TEXTS = [f"prompt {row}" for row in range(10)]
ENTRIES = [{"row": row} for row in range(10)]
LEVELS = torch.arange(10) * 25
EXPECTED = (LEVELS / 255 + torch.arange(10)).double()


def images() -> Tensor:
    return (LEVELS / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 6).contiguous()


def numbered(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    """A reward in which every part of the request counts."""
    assert all(prompt == TEXTS[entry["row"]] for prompt, entry in zip(prompts, metadata, strict=True))
    if images.shape[-2:] != (4, 6):
        raise ValueError("images must be 4 by 6 pixels")
    return images.mean((1, 2, 3)) + torch.tensor([entry["row"] for entry in metadata])


numbered.range = (0.0, 11.0)


class FaultyHandler(Handler):
    """Plays the next fault of `server.faults` instead of an answer."""

    def _send(self, status: int, answer: dict) -> None:
        fault = self.server.faults.pop(0) if self.path == "/score" and self.server.faults else None
        self.server.played.append(fault)
        if fault == "slow":
            time.sleep(1.0)
        if fault == "500":
            status, answer = 500, {"error": "out of memory"}
        if fault == "count":
            answer = {"scores": answer["scores"][1:]}
        if fault == "nan":
            answer = {"scores": [float("nan"), *answer["scores"][1:]]}
        body = b"<html>" if fault == "garbage" else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "half":
            body = body[: len(body) // 2]
        if fault == "dribble":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            return
        self.wfile.write(body)

    def do_POST(self) -> None:  # noqa: N802
        if self.server.faults[:1] in (["close"], ["die"]):
            self.server.played.append(self.server.faults.pop(0))
            self.close_connection = True
            if self.server.played[-1] == "die":
                threading.Thread(target=self.server.shutdown, daemon=True).start()
            return
        super().do_POST()


class FaultyServer(RewardServer):
    handler = FaultyHandler

    def __init__(self, *faults: str, reward=numbered, port: int = 0) -> None:
        super().__init__(get_reward(reward), port=port)
        self.faults, self.played = list(faults), []


@contextmanager
def running(*servers):
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield servers[0] if len(servers) == 1 else servers
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def client(*servers, **settings) -> Remote:
    return Remote([server.url for server in servers], **{"pause": 0.02, "timeout": 5.0, **settings})


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
        remote = client(server, timeout=0.3 if fault in ("slow", "dribble") else 5.0)
        assert torch.allclose(remote(images(), TEXTS, ENTRIES), EXPECTED)
        assert server.played.count(fault) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "status 500: out of memory"),
        ("half", "half an answer: .* bytes are missing"),
        ("count", "answer must hold 5 scores, got 4"),
        ("nan", "scores must be finite, got nan"),
        ("garbage", "answer must hold scores, got b'<html>'"),
        ("close", "RemoteDisconnected"),
        ("slow", "timed out"),
        ("dribble", "no whole answer within 0.3 s"),
    ],
)
def test_a_lasting_fault_ends_the_run_with_a_name_a_sample_and_a_reason(fault, reason):
    timeout = 0.3 if fault in ("slow", "dribble") else 5.0
    with running(FaultyServer("none", *[fault] * 9)) as server:
        reward = get_reward(client(server, batch_size=5, num_rounds=2, timeout=timeout))
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
        assert broken.played.count("500") == 3  # batches 0, 2 and 4 of five came to it first


def test_a_server_that_is_gone_when_training_begins_is_named():
    with running(FaultyServer()) as server:
        url = server.url
    with pytest.raises(ValueError, match=f"{url} must be a reward server that is up, got .*refused"):
        Remote(url)
    servers = FaultyServer(), FaultyServer(reward="shapes")
    with running(*servers), pytest.raises(ValueError, match=r"must serve one reward, got .* numbered, .* shapes"):
        client(*servers)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with running(server), pytest.raises(ValueError, match="must be a reward server that is up, got status 501"):
        Remote(f"http://127.0.0.1:{server.server_address[1]}")


def test_a_server_may_restart_in_the_middle_of_a_run():
    with running(FaultyServer()) as server:
        port, remote = server.server_address[1], client(server, pause=0.1)
        assert torch.allclose(remote(images(), TEXTS, ENTRIES), EXPECTED)
    again = []

    def restart() -> None:
        time.sleep(0.4)
        again.append(FaultyServer(port=port))
        again[0].serve_forever(0.01)

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    try:
        assert torch.allclose(remote(images(), TEXTS, ENTRIES), EXPECTED)
    finally:
        again[0].shutdown()
        thread.join()
        again[0].server_close()


def metrics_of_a_run(remote: Remote) -> list[dict[str, float]]:
    """What four iterations with a remote reward report, but for their seconds."""
    policy = TinyPolicy()
    optimizer, config = torch.optim.SGD(policy.parameters(), lr=0.1), GRPOConfig(num_steps=3, num_seeds=1, max_batch=4)
    rows = [grpo_step(policy, PROMPTS, get_reward(remote), optimizer, config, seed=number) for number in range(4)]
    return [{name: float(value) for name, value in row.items() if "seconds" not in name} for row in rows]


def test_a_run_over_a_server_that_restarts_is_the_run_over_one_that_does_not():
    """The server dies over a request of the second of four iterations, nine requests each, and comes back."""
    with running(FaultyServer(reward=brightness)) as server:
        expected = metrics_of_a_run(client(server))
        assert len(server.played) == 1 + 4 * 9
    lives = [FaultyServer(*["none"] * 11, "die", reward=brightness)]

    def live_twice() -> None:
        lives[0].serve_forever(0.01)
        lives[0].server_close()
        time.sleep(0.3)
        lives.append(FaultyServer(reward=brightness, port=lives[0].server_address[1]))
        lives[1].serve_forever(0.01)

    thread = threading.Thread(target=live_twice, daemon=True)
    thread.start()
    try:
        assert metrics_of_a_run(client(lives[0], pause=0.1)) == expected
    finally:
        lives[-1].shutdown()
        thread.join()
        lives[-1].server_close()
    assert [len(life.played) for life in lives] == [1 + 12, 36 - 11], "both of them were asked"


@pytest.mark.filterwarnings("ignore:reward .* tries halves")
def test_what_the_reward_refuses_is_not_asked_again_and_names_its_sample():
    def picky(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        if "prompt 7" in prompts:
            raise KeyError("seven")
        return images.mean((1, 2, 3))

    message = r"failed on sample 7 .* refused: status 422: .*picky.* KeyError: 'seven'"
    with running(FaultyServer(reward=picky)) as server:
        with pytest.raises(RewardError, match=message):
            get_reward(client(server, batch_size=4))(images(), TEXTS, ENTRIES)
        assert len(server.played) <= 1 + 3  # health, and each batch at most once


def test_a_request_of_another_form_is_refused():
    with running(FaultyServer()) as server:
        for body, message in (
            (b"nothing", "request must be as documented"),
            (pickle.dumps({"images": []}), "request must be as documented"),
        ):
            request = urllib.request.Request(server.url + "/score", data=body)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
            assert caught.value.code == 400
            assert message in json.loads(caught.value.read())["error"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"urls": []}, "urls must be like http://host:port"),
        ({"urls": "localhost:80"}, "urls must be like http://host:port, got .*localhost:80"),
        ({"urls": "http://localhost:1", "batch_size": 0}, "batch_size must be positive, got 0"),
        ({"urls": "http://localhost:1", "timeout": 0}, "timeout must be positive, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Remote(**settings)


class PickleHandler(BaseHTTPRequestHandler):
    """A server of Flow-GRPO's kind: scores are the sizes of the files."""

    def do_POST(self) -> None:
        data = pickle.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(data)
        body = self.server.answer or pickle.dumps({"outputs": [len(file) / 1e4 for file in data["images"]]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        pass


def test_flow_grpos_format_is_read_without_running_what_it_carries(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), PickleHandler)
    server.seen, server.answer = [], None
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.raises(
        ValueError, match="trust_pickle must be true, since this format is a pickle, which can carry code"
    ):
        get_reward({"flow_grpo_server": {"urls": url}})
    with running(server):
        settings = {"urls": url, "trust_pickle": True, "batch_size": 4, "num_rounds": 1}
        scores = get_reward({"flow_grpo_server": settings})(images(), TEXTS, ENTRIES)
        assert scores.shape == (10,)
        assert (scores > 0).all()
        assert [text for data in server.seen for text in data["prompts"]] == TEXTS
        assert [entry for data in server.seen for entry in data["meta_datas"]] == ENTRIES
        assert all(file.startswith(b"\xff\xd8") for data in server.seen for file in data["images"])

        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "owned"), "w"))

        server.answer = pickle.dumps({"outputs": [Trap()] * 4})
        with pytest.raises(RewardError, match=r"must be a pickle of plain data: it asks for _?io.open"):
            get_reward({"flow_grpo_server": settings})(images(), TEXTS, ENTRIES)
        assert not (tmp_path / "owned").exists()
    assert plain(pickle.dumps({"scores": [1.0, 0], "group": {"a": [True, None]}})) == {
        "scores": [1.0, 0],
        "group": {"a": [True, None]},
    }


def test_serve_rewards_serves_until_it_is_interrupted(monkeypatch, capsys):
    asked = []

    def one_answer(server: RewardServer) -> None:
        thread = threading.Thread(target=lambda: asked.append(client(server)(images(), TEXTS, ENTRIES)))
        thread.start()
        while not asked:
            server.handle_request()
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(RewardServer, "serve_forever", one_answer)
    monkeypatch.setattr(RewardServer, "timeout", 0.1, raising=False)
    serve_rewards(numbered, port=0)
    assert torch.allclose(asked[0], EXPECTED)
    assert "serving numbered at http://127.0.0.1:" in capsys.readouterr().out


def test_the_command_serves_a_reward_by_name(capfd):
    """The command line itself, in a process of its own, ended as by Ctrl-C."""
    command = [sys.executable, "-m", "tempflow_fast", "serve-rewards", "jpeg_incompressibility", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        try:
            remote = Remote(re.search(r"http://\S+?(?=;)", line).group())
            assert remote.range == (0.0, float("inf"))
            assert torch.equal(
                remote(images(), TEXTS, ENTRIES), get_reward("jpeg_incompressibility")(images(), TEXTS, ENTRIES)
            )
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    assert "serving jpeg_incompressibility at" in line
    assert capfd.readouterr().err == "ended\n"


def test_the_command_says_what_it_does_not_know(capsys):
    from tempflow_fast.cli import main

    assert main(["serve-rewards", "jpeg"]) == 2
    assert "tempflow-fast serve-rewards: get_reward: reward must be one of aesthetic, " in capsys.readouterr().err
