"""A server that accepts and never answers costs one request's time: the next server scores in its place."""

from __future__ import annotations

import pickle
import socket
import time

import pytest
import torch
from support.servers import ENTRIES, EXPECTED, TEXTS, FaultyServer, client, images, running

from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.flow_grpo_server import plain


def test_batches_of_a_server_that_hangs_go_to_the_other_one():
    class Hanging(FaultyServer):
        """Answers about its health, and never about images."""

        def finish_request(self, request: socket.socket, address: object) -> None:
            if b"/score" in request.recv(64, socket.MSG_PEEK):
                asked.append(time.monotonic())
                time.sleep(3.0)
                return
            super().finish_request(request, address)

    asked: list[float] = []
    with running(Hanging(), FaultyServer()) as (hanging, sound):
        reward = get_reward(client(hanging, sound, batch_size=5, request_timeout=0.5))
        started = time.monotonic()
        scores = reward(images(), TEXTS, ENTRIES)
        seconds = time.monotonic() - started
        assert torch.allclose(scores, EXPECTED, atol=1e-6)
        assert len(asked) == 1
        assert 0.5 <= seconds < 2.5
        assert len([None for fault in sound.played if fault is None]) >= 2


@pytest.mark.parametrize("opcode", [b"r\xff\xff\xff\x7f", b"p2147483647\n"], ids=["LONG_BINPUT", "PUT"])
def test_an_answer_cannot_ask_for_room_for_two_billion_objects(opcode):
    with pytest.raises(
        ValueError, match="a pickle of plain data, got one that is not: it numbers an object 2147483647"
    ):
        plain(b"\x80\x04K\x01" + opcode + b".")
    assert plain(pickle.dumps([1, [2.5, "x"]], protocol=4)) == [1, [2.5, "x"]]
