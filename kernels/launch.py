"""How the kernels are launched: one named rule for the size of a program, and the device the tensors are on.

The rule: a program is `THREADS` threads, and each takes the neighbouring elements of one 16-byte access. More elements
per thread would leave small latents with too few programs to fill a GPU; fewer would not use the widest access.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ACCESS_BYTES = 16
THREADS = tl.constexpr(256)
Rows = tuple[Tensor, int]  # of elements that are neighbours, and the distance of the rows


def block_size(dtype: torch.dtype) -> int:
    """The elements of `dtype` that a program moves."""
    return THREADS.value * ACCESS_BYTES // dtype.itemsize


def blocks_of(numel: int, dtype: torch.dtype) -> int:
    """Programs per row of `numel` elements."""
    return triton.cdiv(numel, block_size(dtype))


def rows(op: str, name: str, tensor: Tensor | None, like: Tensor) -> Rows | None:
    """A [N, D] argument as kernels take it. The ops' functions have checked it; callers of torch.ops may not have."""
    if tensor is None:
        return None
    if tensor.shape != like.shape or tensor.dtype != like.dtype or (tensor.shape[1] > 1 and tensor.stride(1) != 1):
        raise RuntimeError(
            f"{op}: {name} must be {like.dtype} {list(like.shape)}, contiguous within each row, "
            f"got {tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())}"
        )
    return tensor, tensor.stride(0)


def step_of(op: str, coefficients: Tensor, step: int) -> int:
    """A step that is on the host is checked there; those on the device give NaN where the table has no such row."""
    if not 0 <= step < coefficients.shape[0]:
        raise IndexError(f"{op}: step must be in 0..{coefficients.shape[0] - 1}, got {step}")
    return step


@functools.cache
def num_warps(device: torch.device) -> int:
    """Warps of a program: their size differs between GPUs."""
    if device.type == "cpu":  # the interpreter, which has none
        return 1
    with torch.cuda.device(device):
        return THREADS.value // triton.runtime.driver.active.get_current_target().warp_size


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: int) -> None:
    """Run `programs` programs of `kernel` on the current stream of `device`.

    Contraction is off and every rounding is spelled out, so that the noise has the bits of the other bodies.
    """
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[(programs,)](*arguments, num_warps=num_warps(device), enable_fp_fusion=False, **constants)
