"""Builds the package in a separate folder, so that neither the checkout nor the environment changes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from . import BUILT
from .children import ROOT, Ran, run
from .results import Outcome, Skip


def built_folder() -> str:
    """The package that an earlier build left, if the environment names it; empty otherwise."""
    return os.environ.get(BUILT, "")


def build(base: Path, seconds: float) -> Outcome:
    """Builds the package and makes this process use it. If its kernels cannot be compiled, it is built without them.

    The compiled kernels need setuptools, cmake and a compiler, and are for this machine's card alone. Nothing is
    downloaded. A second build of the same files takes a few seconds.

    Args:
        base: the folder of the build.
        seconds: time limit.

    Raises:
        Skip: the package works, but without compiled kernels.
    """
    compiled = _setup(base, seconds)
    if compiled.status or not compiled.in_time:
        copy(base / "lib" / "tempflow_fast")
        use(base / "lib")
        reason = compiled.last_line if compiled.in_time else f"not done after {seconds:.0f} s"
        raise Skip(f"without compiled kernels, since the build failed: {reason}")
    use(_built_in(base))
    said = [line.removeprefix("tempflow_fast: ") for line in compiled.stdout.splitlines() if "CUDA kernels" in line]
    return Outcome(said[-1] if said else "")


def copy(package: Path) -> None:
    """Copies the Python files: the package with Triton's kernels and the reference."""
    shutil.rmtree(package, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "_C.so", "_build.json", "kernels")
    shutil.copytree(ROOT / "tempflow_fast", package, ignore=ignore)
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=ignore)


def use(folder: Path) -> None:
    """Makes this process and its children import the package from `folder`."""
    os.environ[BUILT] = str(folder.resolve())
    sys.path.insert(0, str(folder.resolve()))


def _built_in(base: Path) -> Path:
    """The folder of the built package, which setuptools names after platform and Python."""
    folders = [path for path in base.glob("lib*") if (path / "tempflow_fast").is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime)


def _setup(base: Path, seconds: float) -> Ran:
    options = ("-W", "ignore", "setup.py", "--quiet", "build", "--build-base", base)
    return run(
        [sys.executable, *options], seconds, {"CMAKE_ARGS": " ".join((*_card(), os.environ.get("CMAKE_ARGS", "")))}
    )


def _card() -> list[str]:
    """CMake's option for the card of this machine, since compiling for one takes a fourth of the time."""
    if not torch.cuda.is_available() or torch.version.hip:
        return []
    major, minor = torch.cuda.get_device_capability()
    return [f"-DTEMPFLOW_CUDA_ARCHITECTURES={major}{minor}-real"]
