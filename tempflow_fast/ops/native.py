"""The compiled library: found, loaded and asked here, and nowhere else.

`_C.so` registers C++ bodies for the ops' schemas when it is loaded; it is built without Python's headers, so its
few answers come through ctypes. bodies.py decides whether it is loaded.
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
    """What the last build in this place made and left out, and why (written by setup.py); {} where none ran."""
    return json.loads(BUILD_RECORD.read_text()) if BUILD_RECORD.is_file() else {}


_library: ctypes.CDLL | None = None
reason = "not asked for"
"""Why the library is, or is not, loaded."""


def load(required: bool) -> None:
    """Load the library, which registers its bodies; its absence is one warning, or an ImportError where `required`."""
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
        f"tempflow_fast runs on its reference bodies in plain PyTorch; the compiled kernels are missing ({reason})",
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
    """What the library says about its own build: compiler, torch, CUDA; {} without one."""
    return json.loads(_library.tempflow_build_info()) if _library else {}


def reason_without_cuda() -> str:
    """Why there are no compiled CUDA kernels."""
    return build_record().get("cuda", "not built") if loaded() else reason


def cpu_isa() -> str:
    """The instruction set in use: baseline, avx2 or avx512; empty without the library."""
    return _library.tempflow_cpu_isa().decode() if _library else ""


def force_cpu_isa(name: str) -> bool:
    """Use the kernels of one instruction set from now on; False (and no change) where the machine lacks it."""
    return bool(_library) and _library.tempflow_force_cpu_isa(name.encode())
