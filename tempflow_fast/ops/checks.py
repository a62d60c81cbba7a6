"""Argument checks shared by the ops. Every error names the op, the argument, what it must be and what it was.

In all functions, `op` is the name of the op and `name` that of the argument, for the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import fail, finite, integer, integers, require
from .schedule import StepTable

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_ROW = 2**34  # elements: the noise counter has 32 bits for groups of four
MAX_ELEMENTS = 2**44  # of a tensor: more than any memory holds, and far from an overflow of 64 bits
MAX_FLOAT = torch.finfo(torch.float32).max


def flat(op: str, name: str, tensor: Tensor, num_leading: int = 1) -> Tensor:
    """Views a tensor as its leading dimensions and one dimension of elements, without a copy.

    Rows may be anywhere in memory; each row must be contiguous.

    Args:
        op: the op.
        name: the argument.
        tensor: [*leading, *shape].
        num_leading: how many dimensions to keep.

    Returns:
        [*leading, D].
    """
    _real(op, name, tensor)
    return _flattened(op, name, tensor, num_leading)


def _flattened(op: str, name: str, tensor: Tensor, num_leading: int) -> Tensor:
    if tensor.dim() <= num_leading:
        fail(op, name, f"of {num_leading + 1} or more dimensions", list(tensor.shape))
    if 0 < tensor.numel() <= MAX_ROW and tensor.is_contiguous():
        return tensor.flatten(num_leading)
    shape, numel = tensor.shape[num_leading:], 1
    for size, stride in zip(reversed(shape), reversed(tensor.stride()[num_leading:]), strict=True):
        if size != 1 and stride != numel and tensor.numel():
            fail(op, name, "contiguous within each row (call .contiguous())", f"strides {list(tensor.stride())}")
        numel *= size
    if not numel:
        fail(op, name, "of at least one element per row", list(tensor.shape))
    amount(op, name, math.prod(tensor.shape[:num_leading]), numel)
    if not torch.compiler.is_compiling() and tensor.is_neg():  # PyTorch negates it in a layout of its own
        tensor = tensor.resolve_neg().contiguous()
    return tensor.flatten(num_leading)


def amount(op: str, name: str, num_rows: int, numel: int) -> None:
    """Requires a number of rows and elements that noise and memory allow."""
    if numel > MAX_ROW:
        fail(op, name, "of at most 2^34 elements per row", numel)
    if num_rows * numel > MAX_ELEMENTS:
        fail(op, name, "of at most 2^44 elements", num_rows * numel)


def _real(op: str, name: str, tensor: object) -> None:
    """Requires a dense tensor in one of the dtypes that the ops compute with."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
        fail(op, name, "a float32, bfloat16, float16 or float64 tensor", getattr(tensor, "dtype", type(tensor)))
    _dense(op, name, tensor)


def _dense(op: str, name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_nested:
        fail(op, name, "a dense tensor", "a nested tensor" if tensor.is_nested else tensor.layout)


def constant(op: str, name: str, tensor: Tensor) -> Tensor:
    """Requires a tensor that nothing is derived through, since its derivative would be lost without a word."""
    expected = "a constant (call .detach())"
    if tensor.requires_grad and torch.is_grad_enabled():
        fail(op, name, expected, "a tensor that requires grad")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        fail(op, name, expected, "a tensor with a tangent")
    return tensor


def like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Requires the shape, dtype and device of another argument."""
    if tensor.shape != other.shape:
        fail(op, name, f"{list(other.shape)} like {other_name}", list(tensor.shape))
    if tensor.dtype != other.dtype:
        fail(op, name, f"{other.dtype} like {other_name}", tensor.dtype)
    if tensor.device != other.device:
        fail(op, name, f"on {other.device} like {other_name}", tensor.device)


def row_like(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> Tensor:
    """Flattens `tensor` to [N, D] after a check against `other`."""
    _real(op, name, tensor)
    like(op, name, tensor, other_name, other)
    return _flattened(op, name, tensor, 1)


def optional_row_like(op: str, name: str, tensor: Tensor | None, other_name: str, other: Tensor) -> Tensor | None:
    """The same as `row_like`, but None stays None."""
    return None if tensor is None else row_like(op, name, tensor, other_name, other)


def branch_rows(op: str, branches: Tensor, velocity: Tensor) -> Tensor:
    """Flattens `branches` [R, K, *shape] to [R, K, D] after a check against `velocity` [R, *shape]."""
    _real(op, "branches", branches)
    expected = [velocity.shape[0], "K", *velocity.shape[1:]]
    if branches.dim() != velocity.dim() + 1 or [branches.shape[0], "K", *branches.shape[2:]] != expected:
        fail(op, "branches", f"[{', '.join(map(str, expected))}] like velocity", list(branches.shape))
    if branches.dtype != velocity.dtype or branches.device != velocity.device:
        kind = f"{velocity.dtype} on {velocity.device} like velocity"
        fail(op, "branches", kind, f"{branches.dtype} on {branches.device}")
    return _flattened(op, "branches", branches, 2)


def advantage_rows(op: str, advantages: Tensor, branches: Tensor) -> Tensor:
    """`advantages` [R, K] in the dtype of statistics, after a check against `branches` [R, K, D]."""
    if not isinstance(advantages, Tensor):
        fail(op, "advantages", "a tensor", type(advantages))
    _dense(op, "advantages", advantages)
    if advantages.shape != branches.shape[:2]:
        fail(op, "advantages", f"{list(branches.shape[:2])} like branches", list(advantages.shape))
    if not advantages.is_floating_point() or advantages.device != branches.device:
        fail(op, "advantages", f"floating point on {branches.device}", f"{advantages.dtype} on {advantages.device}")
    return advantages.to(torch.float64 if branches.dtype == torch.float64 else torch.float32).contiguous()


def step_index(op: str, step: int, table: StepTable, noisy: bool = False) -> int:
    """A step of the table; if `noisy`, one at which the sampler adds noise."""
    _is_table(op, table)
    step = integer(op, "step", step)
    if not 0 <= step < table.num_steps:
        fail(op, "step", f"in 0..{table.num_steps - 1}", step)
    # One comparison per silent step instead of a lookup: torch.compile then keeps one graph for all steps.
    if noisy and any(step == silent for silent in table.silent_steps):
        fail(op, "step", f"one where sampler {table.sampler!r} adds noise", step)
    return step


def _is_table(op: str, table: object) -> None:
    if not isinstance(table, StepTable):
        fail(op, "table", "a StepTable (see step_table)", type(table))


def step_rows(op: str, steps: Sequence[int] | Tensor, table: StepTable, num_rows: int, device: torch.device) -> Tensor:
    """`steps` as int64 [R] on `device`; each must be a step with noise.

    Values that are already on an accelerator are not checked, because that would wait for the device.
    """
    _is_table(op, table)
    if isinstance(steps, Tensor):
        _integers_on(op, "steps", steps, device)
    rows = steps if isinstance(steps, Tensor) else integers(op, "steps", steps)
    shape = list(rows.shape) if isinstance(rows, Tensor) else [len(rows)]
    if shape != [num_rows]:
        fail(op, "steps", f"[{num_rows}], one per row", shape)
    if isinstance(steps, Tensor):
        if steps.device.type == "cpu" and not torch.compiler.is_compiling():
            if torch._C._functorch.is_batchedtensor(steps):
                fail(op, "steps", "the same for all of a batch of torch.vmap", "batched values")
            # tolist fails inside transforms of torch.func before torch 2.10; element by element is slow elsewhere.
            transformed = torch._C._functorch.peek_interpreter_stack() is not None
            for step in dict.fromkeys([row.item() for row in steps] if transformed else steps.tolist()):
                step_index(op, step, table, noisy=True)
        return steps.to(device, non_blocking=True).contiguous()
    checked = [step_index(op, step, table, noisy=True) for step in rows]
    return torch.tensor(checked, dtype=torch.int64).to(device, non_blocking=True)


def ids(op: str, trajectory_ids: Sequence[int] | Tensor, num_rows: int | None, device: torch.device | None) -> Tensor:
    """Global trajectory ids as int64 [N]."""
    if isinstance(trajectory_ids, Tensor):
        _integers_on(op, "trajectory_ids", trajectory_ids, device)
    else:
        trajectory_ids = torch.tensor(integers(op, "trajectory_ids", trajectory_ids), dtype=torch.int64)
    if trajectory_ids.dim() != 1 or num_rows not in (None, trajectory_ids.shape[0]):
        fail(op, "trajectory_ids", f"[{'N' if num_rows is None else num_rows}]", list(trajectory_ids.shape))
    amount(op, "trajectory_ids", trajectory_ids.shape[0], 1)
    return trajectory_ids.to(device, non_blocking=True).contiguous()


def _integers_on(op: str, name: str, tensor: Tensor, device: torch.device | None) -> None:
    """Requires dense int64 values that can be copied to a device."""
    if tensor.dtype != torch.int64:
        fail(op, name, "int64", tensor.dtype)
    _dense(op, name, tensor)
    if tensor.is_meta and device is not None and device.type != "meta":
        fail(op, name, f"on {device}", "a meta tensor, which has no values")


def seed_tensor(op: str, seed: int | Tensor, device: torch.device) -> Tensor:
    """The seed as int64 [] on `device`. A tensor passes through, so that a captured graph can read a changing seed."""
    if isinstance(seed, Tensor):
        _dense(op, "seed", seed)
        if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != device:
            fail(op, "seed", f"one int64 value on {device}", f"{seed.dtype} {list(seed.shape)} on {seed.device}")
        return seed.reshape(())
    seed = integer(op, "seed", seed)
    if not 0 <= seed < 2**63:
        fail(op, "seed", "in 0..2^63-1", seed)
    return torch.full((), seed, dtype=torch.int64, device=device)


def number(op: str, name: str, value: object) -> float:
    """A number that is finite in float32, in which the ops compute."""
    value = finite(op, name, value)
    if not -MAX_FLOAT <= value <= MAX_FLOAT:
        fail(op, name, "finite in float32", value)
    return value


def guidance(op: str, velocity_uncond: Tensor | None, guidance_scale: float) -> float:
    """A finite scale; any scale other than 1 needs the unconditional velocity."""
    guidance_scale = number(op, "guidance_scale", guidance_scale)
    if velocity_uncond is None and guidance_scale != 1.0:
        fail(op, "velocity_uncond", f"given for guidance_scale {guidance_scale}", None)
    return float(guidance_scale)


def usable_device(function: str, device: torch.device | str) -> torch.device:
    """The device of that name, if this torch can use it on this machine.

    Args:
        function: the caller, for the error.
        device: a device or its name.

    Raises:
        ValueError: torch cannot use it.
    """
    require(isinstance(device, str | torch.device), function, "device", "a device or its name", repr(device))
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch's own answers, by kind of device
        reason = str(error).strip().splitlines()[0]
        fail(function, "device", "one that torch can use here", f"{str(device)!r}: {reason}")
    require(found.type != "meta", function, "device", "one that holds numbers", repr(str(device)))
    return found
