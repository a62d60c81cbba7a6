"""Compiles all GPU kernels without a GPU and writes what the compilers made of them to docs/gpu-kernels.md.

python -m bench.gpu.aot [--pythons PATH ...]    Triton's kernels by the Triton of each environment, csrc/cuda by nvcc

By default the environments are this one and those that `make compat` has made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..marked import filled
from .build import copy
from .children import ROOT, run
from .report import table

PAGE = ROOT / "docs" / "gpu-kernels.md"
MEMORY = ("spill_bytes", "stack_bytes", "local_accesses", "float_atomics")
SECONDS = 900.0
Line = dict[str, str]
Kernels = dict[str, dict[str, int]]
"""Specialisation -> facts, see tests/support/cubin.py."""


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found = sorted((ROOT / ".venv-compat").glob("*/bin/python"))
    parser.add_argument("--pythons", type=Path, nargs="+", default=[Path(sys.executable), *found])
    options = parser.parse_args()
    lines = [*(line for python in options.pythons for line in triton_lines(python)), *cuda_lines()]
    written = "\n".join(table(lines))
    PAGE.write_text(filled(PAGE.read_text(), "compiled", "python -m bench.gpu.aot", written))
    print("\n".join(table(lines)))


def triton_lines(python: Path) -> Iterator[Line]:
    """A line per target, from the Triton of an environment."""
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder) / "tempflow_fast")
        variables = {"PYTHONPATH": folder, "TRITON_CACHE_DIR": f"{folder}/cache", "TEMPFLOW_FAST_BODY": "reference"}
        ran = run([python, "-m", "support.triton_aot"], SECONDS, variables, folder=ROOT / "tests")
    version = run([python, "-c", "import torch, triton; print(triton.__version__, torch.__version__)"], 60).stdout
    if ran.status:
        raise SystemExit(f"{python}: {ran.last_line}")
    by_target: dict[str, Kernels] = {}
    for kernel, variants in json.loads(ran.stdout).items():
        for variant, targets in variants.items():
            for target, facts in targets.items():
                by_target.setdefault(target, {})[f"{kernel}, {variant}"] = facts
    triton, torch = version.split()
    for target, kernels in by_target.items():
        yield line(f"Triton {triton} (torch {torch})", target, kernels)


def cuda_lines() -> Iterator[Line]:
    """A line per target, from the nvcc of this machine; none without one."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support import sass
    from support.cubin import find_cuobjdump

    nvcc, cuobjdump = shutil.which(os.environ.get("CUDACXX", "nvcc")), find_cuobjdump()
    if nvcc is None or cuobjdump is None:
        print("no nvcc, or no cuobjdump: the CUDA sources were not compiled", file=sys.stderr)
        return
    for architecture in sass.ARCHITECTURES:
        if sass.knows(nvcc, architecture):
            kernels = sass.measure(nvcc, cuobjdump, architecture)
            yield line(f"nvcc {sass.nvcc_release(nvcc)}", f"sm_{architecture}", kernels)


def line(compiler: str, target: str, kernels: Kernels) -> Line:
    """The extremes of all kernels for one target."""
    most = max(kernels, key=lambda name: kernels[name]["registers"])
    used = {
        name: ", ".join(f"{facts[fact]} {fact.replace('_', ' ')}" for fact in MEMORY if facts[fact])
        for name, facts in kernels.items()
    }
    return {
        "compiler": compiler,
        "target": target,
        "specialisations": str(len(kernels)),
        "most registers": f"{kernels[most]['registers']}, {most}",
        "spills, stack, local memory, atomics on floats": "; ".join(
            f"{name}: {facts}" for name, facts in used.items() if facts
        )
        or "none",
    }


if __name__ == "__main__":
    main()
