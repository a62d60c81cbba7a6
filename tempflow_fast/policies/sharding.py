"""Whether FSDP holds weights in shards, one part in each process, and how to gather them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

FSDP_CLASSES = {"FSDPModule", "FullyShardedDataParallel"}
"""What FSDP2 and FSDP1 make of a module."""


def is_sharded(part: Tensor | nn.Module) -> bool:
    """Whether a tensor or a module is split over the processes.

    Decided by names: importing DTensor or FSDP takes two seconds, and a single process needs neither.

    Args:
        part: a parameter or another tensor; or a module, whose submodules are not looked at. A module stays sharded
            while its parameters are gathered for a call.

    Returns:
        True for a DTensor, and for a module that FSDP wraps.
    """
    if isinstance(part, Tensor):
        return hasattr(part, "full_tensor")
    return any(base.__name__ in FSDP_CLASSES for base in type(part).__mro__)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, in every process; any other tensor unchanged.

    Args:
        tensor: of any shape. If it is sharded, all processes must call this together.
    """
    sharded: Any = tensor  # a DTensor, if it is one
    return sharded.full_tensor() if is_sharded(tensor) else tensor
