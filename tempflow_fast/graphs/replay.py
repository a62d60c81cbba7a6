"""Capture and replay of a rollout's network calls.

A segment is a function of tensors: one network call and the moves that follow it. The first time that it comes with
inputs of some shape, it runs as it is, on a side stream; the second time it is captured, and replayed from then on. So
nothing is computed only to prepare for a graph, and shapes that never return are never captured.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..policies.base import Policy
from .capture import Capturer, CudaCapturer, obstacle, state_of

Tensors = dict[str, Tensor]
Segment = Callable[[Tensors], tuple[Tensor, ...]]

MAX_GRAPHS = 64
"""Graphs that are kept; the least recently used one gives way."""
MAX_ROW_COUNTS = 16
"""Row counts that the calls of one rollout may have before they are rounded up to fewer."""


@dataclass(frozen=True, eq=False)
class _Graph:
    replay: Callable[[], None]
    inputs: Tensors
    outputs: tuple[Tensor, ...]


class CudaGraphs:
    """The graphs of one policy, in one memory pool.

    A graph is found again by all that it takes for granted: the caller's key, the names, shapes and dtypes of the
    inputs, and the state of the network, with its modes, adapters and the addresses of its weights. What changes
    between replays are the inputs, which are copied into buffers of fixed addresses, and the weights, in place.

    Where a network cannot be captured, segments run as they are, and one warning names the reason.

    Args:
        capturer: records and replays; None: segments always run as they are, with the row counts of the graphs.
        max_graphs: how many are kept.
    """

    def __init__(self, capturer: Capturer | None, max_graphs: int = MAX_GRAPHS) -> None:
        self._capturer, self._max_graphs = capturer, max_graphs
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()
        self._buffers: dict[Hashable, Tensor] = {}
        self._doubtful: set[Hashable] = set()
        self._state: Hashable = None
        self._capacity = 0
        self._refusal: str | None = None
        self._warned: set[str] = set()
        self.num_captures = 0
        """Graphs captured so far."""
        self.num_replays = 0
        """Segments that a graph ran."""

    @property
    def num_graphs(self) -> int:
        """Graphs that are kept now."""
        return sum(graph is not None for graph in self._graphs.values())

    def begin(self, policy: Policy, num_rows: int) -> None:
        """To be called before the segments of a rollout: looks at the network, which must not change meanwhile.

        Args:
            policy: whose velocity the segments call.
            num_rows: most rows of one segment; input buffers are made for so many.
        """
        if self._capturer is None:
            return
        network = getattr(policy, "acting", policy.network)
        self._capacity = num_rows
        reason = self._refusal or obstacle(network)
        self._state = None if reason else state_of(network)
        if reason:
            self._warn(reason)

    def run(self, key: Hashable, segment: Segment, inputs: Tensors) -> tuple[Tensor, ...]:
        """The outputs of `segment(inputs)`, bit for bit; they hold until the next call.

        Args:
            key: what tells this segment from others with inputs of the same shapes.
            segment: reads tensors from `inputs` and the network's weights alone.
            inputs: device tensors of one dimension or more.
        """
        capturer = self._capturer
        if capturer is None or self._refusal or self._state is None:
            return segment(inputs)
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        full_key = (key, shapes, self._state)
        static = {name: self._buffer(name, tensor) for name, tensor in inputs.items()}
        graph = self._graphs.get(full_key)
        for name, tensor in inputs.items():
            (graph.inputs if graph else static)[name].copy_(tensor)
        if full_key not in self._graphs:
            return self._first_time(capturer, full_key, segment, static)
        graph = graph or self._captured(capturer, full_key, segment, static)
        if graph is None:
            return segment(inputs)
        self._graphs.move_to_end(full_key)
        graph.replay()
        self.num_replays += 1
        return graph.outputs

    def _first_time(self, capturer: Capturer, key: Hashable, segment: Segment, static: Tensors) -> tuple[Tensor, ...]:
        """Runs the segment, so that compilers, autotuners and library handles are done when it is captured."""
        outputs, syncs = capturer.warm_up(lambda: segment(static))
        if not syncs:
            self._graphs[key] = None
        elif key in self._doubtful:  # compiling may wait once; a network that waits again always does
            self._refuse(f"the host waits for the device at {syncs[0]}")
        else:
            self._doubtful.add(key)
        while len(self._graphs) > 2 * self._max_graphs:
            self._graphs.popitem(last=False)
        return outputs

    def _captured(self, capturer: Capturer, key: Hashable, segment: Segment, static: Tensors) -> _Graph | None:
        try:
            replay, outputs = capturer.capture(lambda: segment(static))
        except Exception as error:  # the segment itself has run before, so whatever this is, eager calls do without
            self._refuse(f"capture failed: {(str(error) or type(error).__name__).splitlines()[0]}")
            return None
        self.num_captures += 1
        if self.num_graphs >= self._max_graphs:
            del self._graphs[next(name for name, kept in self._graphs.items() if kept is not None)]
        self._graphs[key] = graph = _Graph(replay, static, outputs)
        return graph

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        """A slice of the buffer that all graphs share for this input; graphs keep theirs where a larger one is made."""
        place = (name, like.shape[1:], like.dtype, like.device)
        if place not in self._buffers or len(self._buffers[place]) < len(like):
            num_rows = max(len(like), self._capacity)
            self._buffers[place] = torch.zeros(num_rows, *like.shape[1:], dtype=like.dtype, device=like.device)
        return self._buffers[place][: len(like)]

    def _refuse(self, reason: str) -> None:
        """From now on everything runs as it is: what failed once would fail again, and a failed capture costs time."""
        self._refusal = reason
        self._graphs.clear()
        self._buffers.clear()
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            message = f"rollout: network calls run without CUDA graphs: {reason}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)


_graphs_of_policies: WeakKeyDictionary[Policy, CudaGraphs] = WeakKeyDictionary()


def graphs_of(policy: Policy) -> CudaGraphs | None:
    """The graphs of `policy`, the same ones at every call, and gone with it; None where it is on no CUDA device."""
    if policy.device.type != "cuda":
        return None
    if policy not in _graphs_of_policies:
        _graphs_of_policies[policy] = CudaGraphs(CudaCapturer(policy.device))
    return _graphs_of_policies[policy]
