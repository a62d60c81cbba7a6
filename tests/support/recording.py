"""A stand-in for stream capture on a CPU, which records work and replays it by the rules of a GPU.

- A capture runs nothing: what it wrote is poison until the first replay.
- What is allocated inside belongs to the pool, and so to whichever graph runs: a replay poisons all other graphs'.
- A replay runs the recorded kernels on the recorded addresses, without Python. Memory that was freed is an error.
- The host can neither wait for a value nor hand over its own memory while a capture is under way.

Whatever breaks a rule fails the capture or replay, as it would on a GPU, and is kept in `violations` for the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Result = TypeVar("Result")

aten = torch.ops.aten
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
FROM_HOST = {"lift_fresh"}
UNWRITTEN = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}


def name_of(op: Any) -> str:
    return op.overloadpacket.__name__


class RecordingDevice:
    """A `Capturer` that runs on the CPU; `events` tells what was asked of it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.violations: list[str] = []
        self.pool: dict[int, torch.UntypedStorage] = {}
        self.writer: dict[int, Recording] = {}

    def warm_up(self, function: Callable[[], Result]) -> tuple[Result, list[str]]:
        self.events.append("warm up")
        with Waits() as waits:
            result = function()
        return result, waits.places

    def capture(self, function: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        self.events.append("capture")
        recording = Recording(self)
        with recording:
            result = function()
        for storage in recording.own.values():
            storage.fill_(0xFF)
        return recording.replay, result

    def violate(self, rule: str) -> None:
        self.violations.append(rule)
        raise RuntimeError(rule)


class Waits(TorchDispatchMode):
    """Notes the ops that make the host wait; memory that it hands over is copied before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if name_of(op) in WAITS | FROM_HOST:
            self.places.append(name_of(op))
        return op(*args, **(kwargs or {}))


class Address:
    """Where a tensor lies: in the pool, or in memory that somebody else has to keep."""

    def __init__(self, tensor: Tensor, pool: dict[int, torch.UntypedStorage]) -> None:
        storage = tensor.untyped_storage()
        self.geometry = (tensor.storage_offset(), tensor.shape, tensor.stride())
        self.dtype, self.pooled = tensor.dtype, pool.get(storage._cdata)
        self.foreign = None if self.pooled is not None else StorageWeakRef(storage)

    def tensor(self) -> Tensor | None:
        storage = self.pooled
        if storage is None:
            storage = torch.UntypedStorage._new_with_weak_ptr(self.foreign.cdata)
        return None if storage is None else torch.empty(0, dtype=self.dtype).set_(storage, *self.geometry)


class Recording(TorchDispatchMode):
    """The kernels of one capture."""

    def __init__(self, device: RecordingDevice) -> None:
        super().__init__()
        self.device = device
        self.own: dict[int, torch.UntypedStorage] = {}
        self.kernels: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if name_of(op) in WAITS:
            self.device.violate(f"{name_of(op)}: the host waits for a value during a capture")
        if name_of(op) in FROM_HOST:
            self.device.violate(f"{name_of(op)}: host memory is read during a capture")
        read = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if read & (self.device.pool.keys() - self.own.keys()):
            self.device.violate(f"{name_of(op)}: reads pool memory of another graph")
        result = op(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        fresh = [leaf for leaf in outputs if leaf.untyped_storage()._cdata not in read]
        for leaf in fresh:
            storage = leaf.untyped_storage()
            self.own[storage._cdata] = self.device.pool[storage._cdata] = storage
        if (fresh or op._schema.is_mutable) and name_of(op) not in UNWRITTEN:  # views run no kernel
            self.kernels.append((op, self.addresses(args), self.addresses(kwargs), self.addresses(fresh)))
        return result

    def addresses(self, tree: Any) -> Any:
        return tree_map(lambda leaf: Address(leaf, self.device.pool) if isinstance(leaf, Tensor) else leaf, tree)

    def replay(self) -> None:
        self.device.events.append("replay")
        for storage in self.device.pool.values():
            storage.fill_(0xFF)
        for op, args, kwargs, fresh in self.kernels:
            result = op(*self.tensors(op, args), **self.tensors(op, kwargs))
            if fresh:
                written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
                for place, value in zip(self.tensors(op, fresh), written, strict=True):
                    place.copy_(value)

    def tensors(self, op: Any, tree: Any) -> Any:
        def at(leaf: Any) -> Any:
            if not isinstance(leaf, Address):
                return leaf
            tensor = leaf.tensor()
            if tensor is None:
                self.device.violate(f"{name_of(op)}: a replay reads memory that was freed")
            return tensor

        return tree_map(at, tree)
