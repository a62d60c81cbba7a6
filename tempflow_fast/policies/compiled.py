"""torch.compile of a network, block by block, for the calls outside training."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

MAX_COMPILATIONS = 64
"""Of one block's code, after which torch goes on without compiling: kinds of blocks, times precisions, times two, since
calls of one row are compiled by themselves. Torch's own limit of 8 is used up by SD3.5's blocks in two precisions."""


class CompileClock:
    """Compilations by torch.compile in this process, and the wall seconds that they took."""

    def __init__(self) -> None:
        self.seconds, self.num_compilations = 0.0, 0
        self._start = 0.0

    def watch(self) -> None:
        """From now on compilations are counted."""
        # Not at the head: nothing else here needs dynamo, whose import takes seconds.
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
"""Of the blocks compiled here."""


def compile_blocks(network: nn.Module) -> int:
    """Compiles every block of the network's lists of blocks by itself, in place; returns how many.

    Blocks of one class share their code, so that one of them is compiled and the others reuse it: seconds instead of
    the minutes that a whole transformer takes. Rows and tokens are symbols in it, so that it serves calls of any size.
    Names and weights stay what they are. torch keeps the result on disk, for later processes, too.

    Raises:
        ValueError: if the network has no list of blocks.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    nested = {id(inner) for outer in lists for block in outer for inner in block.modules()}
    blocks = [block for outer in lists if id(outer) not in nested for block in outer]
    if not blocks:
        raise ValueError(
            f"compile_blocks: network must keep its blocks in a ModuleList, got {type(network).__name__} without one"
        )
    clock.watch()
    for block in blocks:
        block.compile(dynamic=True, recompile_limit=MAX_COMPILATIONS)
    return len(blocks)


def uncompiled() -> AbstractContextManager[None]:
    """Inside this context torch.compile is ignored.

    Training needs it: code compiled with and without gradients differs in its last bits, in bf16 in its third digit,
    and the ratio of an unchanged policy would not be 1. Training is a small part of an iteration, and compiling its
    backward pass takes several times as long as the rollout's code.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
