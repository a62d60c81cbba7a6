"""Facts about the card and its machine. This module needs neither the package, which may not be built yet, nor torch to
be imported, so that an environment without it gets a sentence."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COMMIT = "TEMPFLOW_FAST_BENCH_COMMIT"
"""Environment variable: the commit, for a copy of the files without a repository."""


def missing_card() -> str:
    """Why there is nothing to measure here; empty if there is a card."""
    try:
        import torch
    except ImportError as error:
        return f"{sys.executable} cannot import torch ({error})"
    if torch.cuda.is_available():
        return ""
    if not (torch.version.cuda or torch.version.hip):
        return f"torch {torch.__version__} is built for the CPU alone"
    return f"torch {torch.__version__} finds no card, or no driver for it"


def facts(device: torch.device) -> dict[str, str]:
    """What a reader needs to know to compare the figures."""
    import torch

    found = {"card": platform.processor() or platform.machine(), "device": str(device)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found["card"] = card.name
        found["memory"] = f"{card.total_memory / 2**30:.0f} GiB, {card.L2_cache_size / 2**20:.0f} MiB of L2"
        found["compute"] = f"capability {card.major}.{card.minor}, {card.multi_processor_count} multiprocessors"
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    found["date"] = _output("date", "--utc", "+%Y-%m-%d %H:%M UTC")
    found["commit"] = os.environ.get(COMMIT) or _output("git", "describe", "--always", "--dirty")
    found["torch"] = f"{torch.__version__} (CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()})"
    found["python"] = platform.python_version()
    for package in ("triton", "diffusers", "peft"):
        found[package] = version(package)
    found["nvcc"] = next((line for line in _output("nvcc", "--version").splitlines() if "release" in line), "none")
    return found


def version(package: str) -> str:
    """The version of an installed package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "unknown"
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return ran.stdout.strip() or "unknown"
