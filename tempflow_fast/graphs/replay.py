"""Capture and replay of a rollout's network calls.

A segment is a function of tensors, such as one network call. The first time it gets inputs of a
shape, it runs eagerly on a side stream. The second time it is captured, and from then on replayed. So no work is done
only to prepare a graph, and a shape that occurs once is never captured.
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
"""Name -> tensor."""
Segment = Callable[[Tensors], tuple[Tensor, ...]]
"""Inputs -> outputs."""

MAX_GRAPHS = 64
"""Maximum number of graphs to keep; the least recently used one is dropped."""
MAX_ROW_COUNTS = 16
"""Number of different row counts in one rollout above which they are rounded up to fewer."""


@dataclass(frozen=True, eq=False)
class _Graph:
    replay: Callable[[], None]
    inputs: Tensors
    outputs: tuple[Tensor, ...]


class CudaGraphs:
    """The graphs of one policy, in one memory pool.

    A graph is looked up by everything it depends on: the caller's key, the names, shapes and dtypes of the inputs, and
    the state of the network (see `state_of`). Between replays, only the inputs change, which are copied into buffers
    with fixed addresses, and the values of the weights.

    If a network cannot be captured, segments run eagerly, and one warning gives the reason.

    Args:
        capturer: captures and replays; None: segments always run eagerly, with the row counts of the graphs.
    """

    def __init__(self, capturer: Capturer | None) -> None:
        self._capturer = capturer
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()
        self._buffers: dict[Hashable, Tensor] = {}
        self._doubtful: set[Hashable] = set()
        self._state: Hashable = None
        self._capacity = 0
        self._refusal: str | None = None
        self._warned: set[str] = set()
        self.num_replays = 0
        """Number of segments that were replayed so far."""

    @property
    def num_graphs(self) -> int:
        """Number of graphs that are kept now."""
        return sum(graph is not None for graph in self._graphs.values())

    def begin(self, policy: Policy, num_rows: int) -> None:
        """Prepares for the segments of a rollout, during which the network must not change.

        Args:
            policy: whose velocity the segments call.
            num_rows: maximum number of rows of a segment, the size of the input buffers.
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
        """Computes `segment(inputs)`, by a graph if there is one.

        Args:
            key: distinguishes the segment from others with inputs of the same shapes.
            segment: reads no tensors but its inputs and the network's weights.
            inputs: device tensors with at least one dimension, the rows.

        Returns:
            The outputs, equal bit for bit to those of an eager call, and valid until the next call.
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
        """Runs the segment eagerly, so that compilers, autotuners and library handles are ready when it is captured."""
        outputs, syncs = capturer.warm_up(lambda: segment(static))
        if not syncs:
            self._graphs[key] = None
        elif key in self._doubtful:  # compiling may wait once; a network that waits twice always does
            self._refuse(f"the host waits for the device at {syncs[0]}")
        else:
            self._doubtful.add(key)
        while len(self._graphs) > 2 * MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return outputs

    def _captured(self, capturer: Capturer, key: Hashable, segment: Segment, static: Tensors) -> _Graph | None:
        try:
            replay, outputs = capturer.capture(lambda: segment(static))
        except Exception as error:  # the segment has run before, so the cause is the capture, and eager calls work
            self._refuse(f"capture failed: {(str(error) or type(error).__name__).splitlines()[0]}")
            return None
        if self.num_graphs >= MAX_GRAPHS:
            del self._graphs[next(name for name, kept in self._graphs.items() if kept is not None)]
        self._graphs[key] = graph = _Graph(replay, static, outputs)
        return graph

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        """A slice of the buffer that all graphs share for this input; existing graphs keep theirs if it is replaced."""
        place = (name, like.shape[1:], like.dtype, like.device)
        if place not in self._buffers or len(self._buffers[place]) < len(like):
            num_rows = max(len(like), self._capacity)
            self._buffers[place] = torch.zeros(num_rows, *like.shape[1:], dtype=like.dtype, device=like.device)
        return self._buffers[place][: len(like)]

    def _refuse(self, reason: str) -> None:
        """Makes all later calls eager: what failed once would fail again, and a failed capture takes time."""
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
    """Returns the graphs of a policy, the same object in every call; it is freed with the policy.

    Args:
        policy: the policy.

    Returns:
        The graphs; None if the policy is not on a CUDA device.
    """
    if policy.device.type != "cuda":
        return None
    if policy not in _graphs_of_policies:
        _graphs_of_policies[policy] = CudaGraphs(CudaCapturer(policy.device))
    return _graphs_of_policies[policy]
