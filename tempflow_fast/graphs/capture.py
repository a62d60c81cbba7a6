"""Capturing work on a GPU as a graph: the few calls that `cuda_graphs` needs, and what in a network forbids them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..policies.sharding import is_sharded

Result = TypeVar("Result")


class Capturer(Protocol):
    """A device that can record work once and replay it, with one memory pool and one side stream of its own."""

    def warm_up(self, function: Callable[[], Result]) -> tuple[Result, list[str]]:
        """Runs `function` on the side stream, before and after all other work.

        Returns its result, and where it made the host wait for the device, which a graph cannot do.
        """
        ...

    def capture(self, function: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Records `function` on the side stream, without running it, its memory taken from the pool.

        Returns what replays it on the current stream, and the tensors that every replay writes. They stay where they
        are as long as they are held; everything else in the pool belongs to whichever graph ran last.
        """
        ...


class CudaCapturer:
    """`Capturer` by torch.cuda. Nothing here touches the device before the first call."""

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
        # Memory that the result holds belongs to the side stream, which never runs before it has waited again.
        current.wait_stream(self._stream)
        return result, places

    def capture(self, function: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            cause: Exception | None = None
            try:
                # thread_local: a reward that runs in another thread may allocate meanwhile.
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    try:
                        result = function()
                    except Exception as error:
                        cause = error
                        raise
            except Exception as error:  # that the capture could not end says less than why
                raise cause or error from None
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves the side stream behind
        return graph.replay, result


@contextmanager
def host_syncs() -> Iterator[list[str]]:
    """Collects where, inside the context, the host waits for the GPU: "file:line" each, by CUDA's sync debug mode."""
    places: list[str] = []
    usual = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(usual)
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            places.append(f"{warning.filename}:{warning.lineno}")
        elif "Synchronization debug mode" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def replayable(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a forward hook that has nothing left to do when the network's kernels are replayed without Python."""
    marked: Any = hook
    marked.replayable = True
    return hook


def obstacle(network: nn.Module) -> str | None:
    """Why the calls of `network` cannot be replayed without running its Python; None: they can."""
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
    """What a graph of `network` takes for granted: modules, modes, what is compiled, adapters, where the weights lie,
    precision.

    In-place updates of weights change nothing of it and are seen by replays; a weight that is replaced does.
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
    """The switches of a layer of peft."""
    if not hasattr(module, "merged_adapters"):
        return ()
    scaling = tuple(sorted(getattr(module, "scaling", {}).items()))
    return bool(module.disable_adapters), tuple(module.active_adapters), tuple(module.merged_adapters), scaling
