"""Facts about NVIDIA machine code, from nvcc or from Triton, as cuobjdump shows it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

Kernel = dict[str, int]

NOT_USED = ("stack_bytes", "spill_bytes", "local_accesses", "float_atomics")
"""Facts that must be 0 for every kernel: registers suffice, and sums repeat bit for bit."""

RESOURCES = re.compile(r"^ Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", re.MULTILINE)
FUNCTION = re.compile(r"^\s*Function : (\S+)\n(.*?)(?=^\s*Function : |\Z)", re.DOTALL | re.MULTILINE)
MEMORY = re.compile(r"\b((?:LDG|STG|LDL|STL|RED|ATOM)[.A-Z0-9]*)")


def find_cuobjdump() -> str | None:
    """The path of the disassembler, which comes with CUDA and with Triton, or None."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends/nvidia/bin" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (shutil.which("cuobjdump", path=str(bundled)) if bundled else None)


def inspect(cubin: bytes, cuobjdump: str) -> dict[str, Kernel]:
    """The facts of every function in a cubin.

    Spilled registers are part of the stack (or of "local" memory). A caller that knows their bytes can fill them in.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [cuobjdump, "-res-usage", "-sass", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    resources = {name: map(int, numbers) for name, *numbers in RESOURCES.findall(said)}
    return {name: _facts(Counter(MEMORY.findall(body)), *resources[name]) for name, body in FUNCTION.findall(said)}


def _facts(uses: Counter[str], registers: int, stack: int, local: int) -> Kernel:
    def count(*names: str, part: str = "") -> int:
        return sum(times for use, times in uses.items() if use.startswith(names) and part in use)

    return {
        "registers": registers,
        "stack_bytes": stack + local,
        "spill_bytes": 0,
        "local_accesses": count("LDL", "STL"),
        "float_atomics": count("RED", "ATOM", part=".F"),
        "loads_128": count("LDG", part=".128"),
        "stores_128": count("STG", part=".128"),
    }
