"""How the kernels are launched: one rule for the size of a program, and the device of the tensors.

The rule: a program is `THREADS` threads, each of which takes the neighbouring elements of one 16-byte access. More
elements per thread would leave small latents with too few programs to fill a GPU; fewer would not use the widest
access.
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
Rows = tuple[Tensor, int]  # contiguous rows, and the distance from one to the next
Coefficients = tuple[Tensor, int]  # [T, 5], and T


def block_size(dtype: torch.dtype) -> int:
    """The number of elements of `dtype` that a program moves."""
    return THREADS.value * ACCESS_BYTES // dtype.itemsize


def blocks_of(numel: int, dtype: torch.dtype) -> int:
    """The number of programs per row of `numel` elements."""
    return triton.cdiv(numel, block_size(dtype))


def rows(op: str, name: str, tensor: Tensor | None, like: Tensor) -> Rows | None:
    """An argument [N, D] as kernels take it.

    The public functions check it before; callers of torch.ops may not.

    Args:
        op: the op's name, for the error.
        name: the argument's name, for the error.
        tensor: [N, D] or None, which stays None.
        like: the tensor whose shape and dtype it must have.

    Raises:
        RuntimeError: another shape or dtype, or rows that are not contiguous.
    """
    if tensor is None:
        return None
    scattered = tensor.shape[1] > 1 and tensor.stride(1) != 1 and tensor.numel() > 0
    if tensor.shape != like.shape or tensor.dtype != like.dtype or scattered:
        raise RuntimeError(
            f"{op}: {name} must be {like.dtype} {list(like.shape)}, contiguous within each row, "
            f"got {tensor.dtype} {list(tensor.shape)} with strides {list(tensor.stride())}"
        )
    return tensor, tensor.stride(0)


def with_length(coefficients: Tensor) -> Coefficients:
    """`coefficients` as kernels take them: with the number of steps, so that no kernel reads out of bounds."""
    return coefficients, coefficients.shape[0]


def step_of(op: str, coefficients: Tensor, step: int) -> int:
    """Checks a step that is on the host. Steps on the device are not read here; an unknown one gives NaN."""
    if not 0 <= step < coefficients.shape[0]:
        raise IndexError(f"{op}: step must be in 0..{coefficients.shape[0] - 1}, got {step}")
    return step


@functools.cache
def num_warps(device: torch.device) -> int:
    """The number of warps of a program; their size differs between GPUs."""
    if device.type == "cpu":  # the interpreter has no warps
        return 1
    with torch.cuda.device(device):
        return THREADS.value // triton.runtime.driver.active.get_current_target().warp_size


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: int) -> None:
    """Runs a kernel on the current stream of a device.

    Contraction is off and every rounding is explicit, so that the noise has the same bits as in the other bodies.

    Args:
        kernel: a function under triton.jit.
        programs: how many programs to run.
        device: the device of the tensors.
        arguments: the kernel's arguments.
        constants: its compile-time arguments.
    """
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[(programs,)](*arguments, num_warps=num_warps(device), enable_fp_fusion=False, **constants)
