"""torch.compile of a network, block by block, for the calls outside training."""

from __future__ import annotations

import inspect
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import require

MAX_COMPILATIONS = 64
"""How often one block's code may be compiled; after that torch runs it uncompiled. It takes a compilation for each kind
of block and precision, times two, since calls of one row are compiled separately. SD3.5's blocks in two precisions use
up torch's own limit of 8."""


class CompileClock:
    """Counts compilations by torch.compile in this process, and the wall seconds that they take."""

    def __init__(self) -> None:
        self.seconds, self.num_compilations = 0.0, 0
        self._start = 0.0

    def watch(self) -> None:
        """Starts counting compilations."""
        # Not at the top: nothing else here needs dynamo, whose import takes seconds.
        from torch._dynamo.callback import callback_handler

        if self._begin not in callback_handler.start_callbacks:  # torch.compiler.reset() forgets them
            callback_handler.register_start_callback(self._begin)
            callback_handler.register_end_callback(self._end)

    def _begin(self, _: Any) -> None:
        self.num_compilations += 1
        self._start = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.seconds += time.perf_counter() - self._start


clock = CompileClock()
"""Counts the compilations of `compile_blocks`."""


def compile_blocks(network: nn.Module) -> int:
    """Compiles every block of the network's lists of blocks separately and in place.

    Blocks of one class share their code, so one of them is compiled and the others reuse it: seconds instead of the
    minutes that a whole transformer takes. The numbers of rows and tokens are symbolic, so the code serves calls of any
    size. Names and weights stay the same. torch keeps the result on disk, for later processes as well.

    Args:
        network: keeps its blocks in a ModuleList.

    Returns:
        The number of blocks.

    Raises:
        ValueError: if the network has no list of blocks.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    nested = {id(inner) for outer in lists for block in outer for inner in block.modules()}
    blocks = [block for outer in lists if id(outer) not in nested for block in outer]
    name = type(network).__name__
    require(bool(blocks), "compile_blocks", "network", "a module with blocks in a ModuleList", f"{name} without one")
    clock.watch()
    for block in blocks:
        block.compile(dynamic=True, **_limit())
    return len(blocks)


def _limit() -> dict[str, int]:
    """The option of torch.compile; before 2.13 it has none, and only the limit of the whole process can be raised."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": MAX_COMPILATIONS}
    from torch import _dynamo

    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, MAX_COMPILATIONS)
    return {}


def uncompiled() -> AbstractContextManager[None]:
    """Inside this context torch.compile is ignored.

    Training needs this: code compiled with gradients and without differs in its last bits, in bf16 in its third digit,
    and the ratio of an unchanged policy would not be 1. Training is a small part of an iteration, and compiling its
    backward pass takes several times as long as compiling the rollout's code.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
