"""The only module that finds, loads and queries the compiled library.

`_C.so` registers C++ bodies for the ops' schemas when it is loaded. It is built without Python's headers, so its few
functions are called through ctypes. bodies.py decides whether it is loaded.
"""

from __future__ import annotations

import ctypes
import json
import warnings
from pathlib import Path

import torch

PACKAGE = Path(__file__).parents[1]
LIBRARY = PACKAGE / "_C.so"
BUILD_RECORD = PACKAGE / "_build.json"


def build_record() -> dict[str, str]:
    """What the last build made and left out, and why, as setup.py wrote it; {} if there was none."""
    return json.loads(BUILD_RECORD.read_text()) if BUILD_RECORD.is_file() else {}


_library: ctypes.CDLL | None = None
reason = "not asked for"
"""Why the library is loaded, or why not."""


def load(required: bool) -> None:
    """Loads the library, which registers its bodies. If it is missing, there is one warning.

    Args:
        required: whether a missing library is an error instead.

    Raises:
        ImportError: the library is required, and is missing or does not load.
    """
    global _library, reason
    if not LIBRARY.is_file():
        reason = build_record().get("cpu", "not built: run `pip install .` or `pip install -e .`")
    else:
        try:
            torch.ops.load_library(LIBRARY)
            _library, reason = _declared(ctypes.CDLL(str(LIBRARY))), "loaded"
            return
        except OSError as error:
            reason = f"built, but does not load: {error}"
    if required:
        raise ImportError(f"TEMPFLOW_FAST_BODY=native, but the compiled kernels are missing ({reason})")
    warnings.warn(
        f"tempflow_fast uses its reference bodies in plain PyTorch: the compiled kernels are missing ({reason})",
        RuntimeWarning,
        stacklevel=2,
    )


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name in ("tempflow_build_info", "tempflow_cpu_isa"):
        getattr(library, name).restype = ctypes.c_char_p
    library.tempflow_force_cpu_isa.argtypes = [ctypes.c_char_p]
    library.tempflow_force_cpu_isa.restype = ctypes.c_bool
    return library


def loaded() -> bool:
    """Whether the compiled bodies are registered."""
    return _library is not None


def build_info() -> dict[str, str]:
    """The library's own record of its build (compiler, torch, CUDA); {} if it is not loaded."""
    return json.loads(_library.tempflow_build_info()) if _library else {}


def reason_without_cuda() -> str:
    """Why there are no compiled CUDA kernels."""
    return build_record().get("cuda", "not built") if loaded() else reason


def cpu_isa() -> str:
    """The instruction set in use: baseline, avx2 or avx512; empty if the library is not loaded."""
    return _library.tempflow_cpu_isa().decode() if _library else ""


def force_cpu_isa(name: str) -> bool:
    """Uses the kernels of one instruction set from now on.

    Args:
        name: baseline, avx2 or avx512.

    Returns:
        False, and no change, if the machine lacks it or the library is not loaded.
    """
    return bool(_library and _library.tempflow_force_cpu_isa(name.encode()))
