"""Modules that wait in host memory, and whose weights are copied to a device for the time of a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils._python_dispatch import _disable_current_modes

from ..errors import require

BLOCK_BYTES = 2**28
"""Pinned memory comes in blocks of this size: torch rounds every piece up to a power of two, which would take half as
much again for weights one by one."""
ALIGNMENT = 64
"""In bytes: what PyTorch's own allocators give."""


class HostCopies:
    """The weights of modules, kept in host memory from now on.

    Only one direction is ever copied: nothing changes the weights on the device, so that the host's copy stays the
    right one, and the device's is dropped after use.

    Args:
        modules: nothing may train them.
        device: where they compute. For a CUDA device the host's copy is pinned, from which copies are several times
            as fast.

    Raises:
        ValueError: if a weight is not a plain tensor, such as one in 4 bits.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self._device = device
        self._tensors = own_tensors(modules)
        kinds = {type(tensor) for tensor in self._tensors} - {Tensor, Parameter}
        got = ", ".join(kind.__name__ for kind in kinds)
        require(not kinds, "offload_text_encoders", "text encoders", "of plain tensors, to move without loss", got)
        pinned = _PinnedBlocks() if device.type == "cuda" else None
        for tensor in self._tensors:
            tensor.data = tensor.detach().cpu() if pinned is None else pinned.copied(tensor.detach())

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Inside this context the modules compute on the device."""
        with swapped(self._tensors, (_on(tensor.detach(), self._device) for tensor in self._tensors)):
            yield


@contextmanager
def swapped(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> Iterator[None]:
    """Inside this context tensors hold the data of others; afterwards their own again, the very same storages.

    Args:
        tensors: weights; nothing may train them.
        others: one for each, read in turn.
    """
    before = []
    try:
        with _disable_current_modes():  # `FakeTensorMode` would hand out tensors without data for `data`
            for tensor, other in zip(tensors, others, strict=True):
                before.append((tensor, tensor.data))
                tensor.data = other
        yield
    finally:
        with _disable_current_modes():
            for tensor, data in before:
                tensor.data = data


def own_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters and buffers of modules, each once, however often it is used.

    Args:
        modules: any.
    """
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return list({id(tensor): tensor for tensor in tensors}.values())


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a device; from pinned memory the host does not wait for it."""
    return tensor.to(device, non_blocking=True)


class _PinnedBlocks:
    """Copies of tensors, one after another in blocks of pinned memory."""

    def __init__(self) -> None:
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0

    def copied(self, tensor: Tensor) -> Tensor:
        if self._used + tensor.nbytes > len(self._block):
            self._block, self._used = _pinned(max(tensor.nbytes, BLOCK_BYTES)), 0
        place = self._block[self._used : self._used + tensor.nbytes]
        self._used += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _pinned(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
