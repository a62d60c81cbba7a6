"""A reward server's answers, and the command that starts a server."""

import json
import pickle
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest
import torch
from support.servers import ENTRIES, EXPECTED, TEXTS, FaultyServer, client, images, numbered, running
from torch import Tensor

from tempflow_fast.rewards import RewardError, get_reward
from tempflow_fast.rewards.remote import Remote
from tempflow_fast.rewards.server import RewardServer, serve_rewards


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
            (b"nothing", "unpack_request: body must be as documented"),
            (pickle.dumps({"images": []}), "unpack_request: body must be as documented"),
        ):
            request = urllib.request.Request(server.url + "/score", data=body)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request)
            assert caught.value.code == 400
            assert message in json.loads(caught.value.read())["error"]


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


@pytest.mark.slow
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
