"""Builds the package in a separate folder, so that neither the checkout nor the environment changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import BUILT
from .results import Outcome, Skip

ROOT = Path(__file__).parents[2]


def build(base: Path, seconds: float) -> Outcome:
    """Builds the package and makes this process use it. If its kernels cannot be compiled, it is built without them.

    The compiled kernels need setuptools, cmake and a compiler. Nothing is downloaded.

    Args:
        base: the folder of the build.
        seconds: time limit.

    Raises:
        Skip: the package works, but without compiled kernels.
    """
    compiled = _setup("build", "--build-base", str(base), seconds=seconds)
    problem = ""
    if compiled.returncode:
        problem = _last_line(compiled)
        _copy(base / "lib" / "tempflow_fast")
    use(_built_in(base))
    if problem:
        raise Skip(f"without compiled kernels, since the build failed: {problem}")
    said = [line.removeprefix("tempflow_fast: ") for line in compiled.stdout.splitlines() if "CUDA kernels" in line]
    return Outcome(said[-1] if said else "")


def _copy(package: Path) -> None:
    """Copies the Python files: the package with Triton's kernels and the reference."""
    shutil.rmtree(package, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "_C.so", "_build.json", "kernels")
    shutil.copytree(ROOT / "tempflow_fast", package, ignore=ignore)
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=ignore)


def use(folder: Path) -> None:
    """Makes this process and its children import the package from `folder`."""
    os.environ[BUILT] = str(folder)
    sys.path.insert(0, str(folder))


def _built_in(base: Path) -> Path:
    """The folder of the built package, which setuptools names after platform and Python."""
    folders = [path for path in base.glob("lib*") if (path / "tempflow_fast").is_dir()]
    return max(folders, key=lambda path: path.stat().st_mtime).resolve()


def _setup(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "setup.py", "--quiet", *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"not done after {seconds:.0f} s")


def _last_line(ran: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"status {ran.returncode}"
