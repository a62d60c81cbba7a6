"""Bytes alive at once while operators run, on real tensors or on tensors without data."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make inside it, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.dropped = self.undropped_peak = 0
        """Bytes that were dropped early, and the peak if they were not: add them when they go."""
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = {name: _mapped(self._entering, value) for name, value in (kwargs or {}).items()}
        out = func(*_mapped(self._entering, args), **named)
        _mapped(self._count, out)
        return out

    def _entering(self, tensor: Tensor) -> Tensor:
        """An input, whose storage was there before."""
        self._seen.add(tensor.untyped_storage())
        return tensor

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return tensor
        self._seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self.undropped_peak = max(self.undropped_peak, self.live + self.dropped)
        weakref.finalize(storage, self._release, size)
        return tensor

    def _release(self, size: int) -> None:
        self.live -= size


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with the function applied to its tensors; torch's general way is slower than operators without data."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(function, item) for item in value)
    return value


class WithoutData(LiveBytes):
    """The same for tensors without data; others that are used are taken for such.

    Args:
        fake: the mode that makes them.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def _entering(self, tensor: Tensor) -> Tensor:
        return super()._entering(tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor))
