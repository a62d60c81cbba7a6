"""Reward servers on this machine with faults on demand, and a client for them."""

import json
import threading
import time
from contextlib import contextmanager

import torch
from torch import Tensor

from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.remote import Remote
from tempflow_fast.rewards.server import Handler, RewardServer

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
            answer = {**answer, "scores": answer["scores"][1:]}
        if fault == "nan":
            answer = {**answer, "scores": [float("nan"), *answer["scores"][1:]]}
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
    return Remote([server.url for server in servers], **{"pause": 0.02, "request_timeout": 5.0, **settings})
