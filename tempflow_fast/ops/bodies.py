"""Which body serves the ops on which device: decided here, once, when the ops are defined.

The environment variable TEMPFLOW_FAST_BODY decides:

    (not set)   the compiled library where it has a body for the device, else Triton on GPUs, else the reference
    native      the compiled library, whose absence is an error; the reference where it has no body
    triton      Triton, whose absence is an error; the library stays unloaded, so CPUs are served by the reference
                (or, with TRITON_INTERPRET=1, by Triton's interpreter)
    reference   plain PyTorch alone

float64 is always served by the reference.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import warnings
from types import ModuleType

import torch

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
"""Device type (cpu, cuda) -> why its ops have the body that they have."""

_filled: dict[tuple[str, str], str] = {}  # (op, dispatch key) -> body, where the library does not serve
_registrations = torch.library.Library("tempflow_fast", "IMPL")


def settle() -> None:
    """Load and register what TEMPFLOW_FAST_BODY asks for; called once, when all schemas are defined.

    Raises ValueError for another value of the variable, ImportError where a body that it names is missing.
    """
    wish = os.environ.get("TEMPFLOW_FAST_BODY", "")
    if wish not in ("", *BODIES):
        raise ValueError(f"TEMPFLOW_FAST_BODY must be native, triton or reference, got {wish!r}")
    if wish in ("", "native"):
        native.load(required=wish == "native")
    else:
        native.reason = f"TEMPFLOW_FAST_BODY={wish}"
    why["cpu"] = native.reason
    _settle_gpu(wish)


def body(op: str, device_type: str) -> str:
    """`native`, `triton` or `reference`: what serves `op` on `cpu` or `cuda` (ROCm is `cuda`, too)."""
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
        warnings.warn(f"tempflow_fast leaves its compiled CUDA kernels alone: {problem}", RuntimeWarning, stacklevel=4)
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
        # Where the library's kernels are left alone, theirs are the places that are filled: torch need not say so, too.
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for op in ops:
            _registrations.impl(op, getattr(module, op), key)
            _filled[op, key] = name


def torch_serves_gpus() -> bool:
    """Whether this torch is built for CUDA or ROCm."""
    return bool(torch.version.cuda or torch.version.hip)


def _library_problem() -> str:
    """Why the library's CUDA kernels must not be used with this torch; empty where they may, or there are none."""
    built = native.build_info().get("cuda", "")
    if not built:
        return ""
    if torch.version.hip:
        return f"they are for CUDA, torch {torch.__version__} for ROCm"
    if torch.version.cuda and int(built.partition(".")[0]) > int(torch.version.cuda.partition(".")[0]):
        return f"nvcc {built} made them, and the driver may know no more than CUDA {torch.version.cuda} of this torch"
    return ""


def _triton(required: bool) -> tuple[ModuleType | None, str]:
    """The package of Triton bodies, or None, and a sentence."""
    try:
        kernels = importlib.import_module("tempflow_fast.kernels")
    except ImportError as error:
        if required:
            raise ImportError(f"TEMPFLOW_FAST_BODY=triton, but Triton or its kernels are missing ({error})") from error
        return None, f"Triton or its kernels are missing ({error})"
    return kernels, f"Triton {importlib.metadata.version('triton')}"
