"""Where figures come from."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from tempflow_fast.ops import native


def facts() -> dict[str, str]:
    """What a reader has to know to compare the figures."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "kernels": native.cpu_isa() or "reference",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in found.items()}
    name = named.get("model name", platform.processor() or platform.machine())
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in named.get("flags", "").split()]
    model = f", family {named['cpu family']} model {named['model']}" if "cpu family" in named else ""
    return f"{name}{model}, {' and '.join(bf16) or 'no bf16 instructions'}"


def _commit() -> str:
    ran = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "unknown"
