"""Capturing work on a GPU as a graph: the calls that `replay` needs, and what in a network forbids them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..policies.sharding import is_sharded

Result = TypeVar("Result")


SYNC = "called a synchronizing"
"""Words of CUDA's warning about a host that waits."""


class Capturer(Protocol):
    """A device that can capture work once and replay it, with its own memory pool and side stream."""

    def warm_up(self, function: Callable[[], Result]) -> tuple[Result, list[str]]:
        """Runs a function on the side stream, after all earlier and before all later work.

        Args:
            function: the work.

        Returns:
            Its result, and the places where it made the host wait for the device, which a graph cannot do.
        """
        ...

    def capture(self, function: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Captures a function on the side stream without running it, with memory from the pool.

        Args:
            function: the work.

        Returns:
            A function that replays the work on the current stream, and the tensors that every replay writes. Those keep
            their addresses while they are referenced; all other memory of the pool belongs to the graph that ran last.
        """
        ...


class CudaCapturer:
    """A `Capturer` that uses torch.cuda. It does not touch the device before the first call.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None  # torch.cuda's handle of a pool, a private type

    @property
    def _stream(self) -> torch.cuda.Stream:
        if self._side is None:
            self._side = torch.cuda.Stream(self._device)
        return self._side

    def warm_up(self, function: Callable[[], Result]) -> tuple[Result, list[str]]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), host_syncs() as places:
            result = function()
        # The memory of the result belongs to the side stream, which always waits before it runs again.
        current.wait_stream(self._stream)
        return result, places

    def capture(self, function: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            cause: Exception | None = None
            try:
                # thread_local: a reward in another thread may allocate memory in the meantime.
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    try:
                        result = function()
                    except Exception as error:
                        cause = error
                        raise
            except Exception as error:  # this one only says that the capture did not end; the cause says why
                _end_allocation(self._pool)
                # torch 2.11 refuses another capture into it: the allocator of pinned memory still records to it.
                self._pool = None
                raise cause or error from None
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves the side stream current
        return graph.replay, result


def _end_allocation(pool: Any) -> None:
    """Ends the allocator's part of a failed capture on the current device.

    torch up to 2.12 leaves it under way, and blocks that another stream has used would never be freed again.
    """
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end is not None:
        with suppress(RuntimeError):  # torch itself has ended it
            end(torch.cuda.current_device(), pool)


@contextmanager
def host_syncs() -> Iterator[list[str]]:
    """Collects the places where the host waits for the GPU inside the context, with CUDA's sync debug mode.

    Yields:
        A list that is complete after the context: "file:line" of each wait.
    """
    places: list[str] = []
    caught: list[warnings.WarningMessage] = []
    own, usual, show = threading.get_ident(), torch.cuda.get_sync_debug_mode(), warnings.showwarning

    def catch(message: Warning | str, *details: Any, **more: Any) -> None:
        # The mode and the filters are those of all threads, and a reward in another one may well wait.
        if threading.get_ident() == own:
            caught.append(warnings.WarningMessage(message, *details, **more))
        elif SYNC not in str(message):
            show(message, *details, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = catch
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(usual)
    for warning in caught:
        if SYNC in str(warning.message):
            places.append(f"{warning.filename}:{warning.lineno}")
        elif "Synchronization debug mode" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def replayable(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a forward hook that need not run when the network's kernels are replayed without Python.

    Args:
        hook: the forward hook or forward pre-hook.

    Returns:
        The same hook.
    """
    marked: Any = hook
    marked.replayable = True
    return hook


def obstacle(network: nn.Module) -> str | None:
    """Finds out why the calls of a network cannot be replayed without its Python code.

    Args:
        network: the network.

    Returns:
        The reason; None if they can be replayed.
    """
    for name, module in network.named_modules():
        where = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if is_sharded(module):
            return f"{where} is sharded by FSDP, whose all-gathers run outside a graph"
        if hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook"):
            return f"{where} is moved between devices by hooks"
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if not all(getattr(hook, "replayable", False) for hook in hooks):
            return f"{where} has forward hooks, which a replay would not call"
    every = torch.nn.modules.module
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        return "there are global forward hooks, which a replay would not call"
    return None


def state_of(network: nn.Module) -> Hashable:
    """Returns a hash of everything that a graph of a network depends on: modules, modes, what is compiled, adapters,
    addresses of the weights, precision.

    In-place updates of weights do not change it, and replays see them; replacing a weight changes it.

    Args:
        network: the network.
    """
    modules = tuple(
        (id(module), module.training, module._compiled_call_impl is None, *_adapter_state(module))
        for module in network.modules()
    )
    tensors: tuple[Tensor, ...] = (*network.parameters(), *network.buffers())
    weights = tuple((tensor.data_ptr(), tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
    kind = tensors[0].device.type if tensors else "cpu"
    precision = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.get_float32_matmul_precision())
    return hash((modules, weights, precision, torch.are_deterministic_algorithms_enabled()))


def _adapter_state(module: Any) -> tuple[Hashable, ...]:
    """The switches of a peft layer."""
    if not hasattr(module, "merged_adapters"):
        return ()
    scaling = tuple(sorted(getattr(module, "scaling", {}).items()))
    return bool(module.disable_adapters), tuple(module.active_adapters), tuple(module.merged_adapters), scaling
