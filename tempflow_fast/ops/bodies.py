"""Decides which body serves the ops on which device, once, when the ops are defined.

The environment variable TEMPFLOW_FAST_BODY decides:

    (not set)   the compiled library if it has a body for the device, else Triton on GPUs, else the reference
    native      the compiled library, an error if it is missing; the reference for ops without a body in it
    triton      Triton, an error if it is missing; the library is not loaded, so the reference serves CPUs
                (or, with TRITON_INTERPRET=1, Triton's interpreter)
    reference   only plain PyTorch

The reference always serves float64.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import warnings
from types import ModuleType

import torch

from ..errors import require
from . import native, reference

BODIES = ("native", "triton", "reference")
OPS = (
    "guided_velocity",
    "euler_step",
    "branch_step",
    "initial_noise",
    "log_prob",
    "log_prob_backward",
    "policy_loss",
)

why: dict[str, str] = {}
"""Device type (cpu, cuda) -> why its ops have their body."""

_filled: dict[tuple[str, str], str] = {}  # (op, dispatch key) -> body, for ops that the library does not serve
_registrations = torch.library.Library("tempflow_fast", "IMPL")


def settle() -> None:
    """Loads and registers the bodies that TEMPFLOW_FAST_BODY asks for; called once, when all schemas are defined.

    Raises:
        ValueError: the variable has an unknown value.
        ImportError: the body that it names is missing.
    """
    wish = os.environ.get("TEMPFLOW_FAST_BODY", "")
    known = wish in ("", *BODIES)
    require(known, "tempflow_fast", "TEMPFLOW_FAST_BODY", "native, triton or reference", repr(wish))
    if wish in ("", "native"):
        native.load(required=wish == "native")
    else:
        native.reason = f"TEMPFLOW_FAST_BODY={wish}"
    why["cpu"] = native.reason
    _settle_gpu(wish)


def body(op: str, device_type: str) -> str:
    """The body that serves an op on a device.

    Args:
        op: one of OPS.
        device_type: `cpu` or `cuda`; ROCm is `cuda`, too.

    Returns:
        `native`, `triton` or `reference`.
    """
    key = device_type.upper()
    if (op, key) in _filled:
        return _filled[op, key]
    return "native" if torch._C._dispatch_has_kernel_for_dispatch_key(f"tempflow_fast::{op}", key) else "reference"


def _settle_gpu(wish: str) -> None:
    problem = _library_problem()
    missing = [op for op in OPS if problem or body(op, "cuda") != "native"]
    if not missing:
        why["cuda"] = f"compiled by nvcc {native.build_info()['cuda']}"
        return
    why["cuda"] = problem or native.reason_without_cuda()
    if problem and wish in ("", "native"):
        warnings.warn(f"tempflow_fast does not use its compiled CUDA kernels: {problem}", RuntimeWarning, stacklevel=4)
    if wish == "triton" or (not wish and torch_serves_gpus()):
        kernels, reason = _triton(required=wish == "triton")
        if kernels is not None:
            _fill(missing, "CUDA", "triton", kernels)
            if kernels.INTERPRETED and wish:
                _fill(missing, "CPU", "triton", kernels)
                why["cpu"] = "Triton's interpreter"
        why["cuda"] += f"; {reason}"
    elif not wish:
        why["cuda"] = f"torch {torch.__version__} serves no GPU"
    _fill([op for op in missing if problem and body(op, "cuda") == "native"], "CUDA", "reference", reference)


def _fill(ops: list[str], key: str, name: str, module: ModuleType) -> None:
    with warnings.catch_warnings():
        # These bodies replace the library's kernels that are not used, which torch would warn about as well.
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for op in ops:
            _registrations.impl(op, getattr(module, op), key)
            _filled[op, key] = name


def torch_serves_gpus() -> bool:
    """Whether this torch is built for CUDA or ROCm."""
    return bool(torch.version.cuda or torch.version.hip)


def _library_problem() -> str:
    """Why the library's CUDA kernels must not be used with this torch; empty if they may, or if there are none."""
    built = native.build_info().get("cuda", "")
    if not built:
        return ""
    if torch.version.hip:
        return f"they are for CUDA, but torch {torch.__version__} is for ROCm"
    if torch.version.cuda and int(built.partition(".")[0]) > int(torch.version.cuda.partition(".")[0]):
        return f"nvcc {built} compiled them, and the driver may only support CUDA {torch.version.cuda}, as this torch"
    return ""


def _triton(required: bool) -> tuple[ModuleType | None, str]:
    """The package of Triton bodies, or None, and a sentence about it."""
    try:
        kernels = importlib.import_module("tempflow_fast.kernels")
    except ImportError as error:
        if required:
            raise ImportError(f"TEMPFLOW_FAST_BODY=triton, but Triton or its kernels are missing ({error})") from error
        return None, f"Triton or its kernels are missing ({error})"
    return kernels, f"Triton {importlib.metadata.version('triton')}"
