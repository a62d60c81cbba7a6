"""How the kernels are launched: one named rule for the size of a program, and the device the tensors are on.

The rule: a program is `THREADS` threads, and each takes the neighbouring elements of one 16-byte access. More elements
per thread would leave small latents with too few programs to fill a GPU, and fewer would not use the widest access.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton
from torch import Tensor

THREADS = 256
ACCESS_BYTES = 16


def tile(dtype: torch.dtype) -> dict[str, int]:
    """The compile-time sizes of a program that moves `dtype`: elements per thread, elements in all."""
    elements = ACCESS_BYTES // dtype.itemsize
    return {"VECTOR": elements, "BLOCK": elements * THREADS}


def blocks_of(numel: int, dtype: torch.dtype) -> int:
    """Programs per row of `numel` elements."""
    return triton.cdiv(numel, tile(dtype)["BLOCK"])


def rows(op: str, name: str, tensor: Tensor | None, like: Tensor) -> tuple[Tensor | None, int]:
    """A [N, D] argument and the distance of its rows; the ops' functions have checked it, other callers may not have."""
    if tensor is None:
        return None, 0
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
    if device.type == "cpu":  # the interpreter, which has no warps
        return 1
    with torch.cuda.device(device):
        return THREADS // triton.runtime.driver.active.get_current_target().warp_size


def launch(kernel: Any, programs: int, *arguments: Any, **constants: int) -> None:
    """Run `programs` programs of `kernel` on the device and stream of its first argument.

    Contraction is off and every rounding is spelled out, so that the noise has the bits of the other bodies.
    """
    device = arguments[0].device
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[(programs,)](*arguments, num_warps=num_warps(device), enable_fp_fusion=False, **constants)
