"""Where the seconds and the bytes of an iteration go."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from tempflow_fast.grpo.live_bytes import LiveBytes
from tempflow_fast.policies import DiffusersPolicy

MIB = 2**20


class NetworkClock:
    """Counts calls and rows of a policy's network, and the seconds in it, both ways, and in the optimizer.

    For a CPU, where a call is over when it returns. Guidance counts two rows.
    """

    def __init__(self, policy: DiffusersPolicy, optimizer: torch.optim.Optimizer, with_reference: bool) -> None:
        modules = {policy.network}
        if with_reference:
            with policy.reference():
                modules.add(policy.acting)
        for module in modules:
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave)
        optimizer.register_step_pre_hook(lambda *_: self._begin())
        optimizer.register_step_post_hook(lambda *_: self._end("optimizer"))
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self.calls = self.rows = 0
        self.seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    @property
    def network(self) -> float:
        """Seconds in the network."""
        return self.seconds["forward"] + self.seconds["backward"]

    def _begin(self) -> None:
        self._start = time.perf_counter()

    def _end(self, part: str) -> None:
        self.seconds[part] += time.perf_counter() - self._start

    def _enter(self, module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        self.calls += 1
        self.rows += len(keywords["hidden_states"])
        self._begin()

    def _leave(self, module: nn.Module, arguments: Any, output: tuple[Tensor, ...]) -> None:
        self._end("forward")
        if output[0].requires_grad:
            output[0].register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        """The gradient has come to the network's output; what is left of the backward pass is the network's."""
        self._begin()
        Variable._execution_engine.queue_callback(lambda: self._end("backward"))


def peak_mib(call: Callable[[], object]) -> float:
    """Most MiB of tensors made inside the call that were alive at once."""
    with LiveBytes() as bytes_:
        call()
    return bytes_.peak / MIB
