"""What nvcc makes of csrc/cuda, as a table: registers, memory that must not be used, and the width of accesses.

    python tests/sass.py            compile and write the table to csrc/cuda/registers.json

`cuobjdump` comes with CUDA, and with Triton.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "csrc/cuda"
TABLE = SOURCES / "registers.json"
ARCHITECTURES = ("80", "90", "100")
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v")  # as CMakeLists.txt

RESOURCES = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)
NAME = re.compile(r"([a-z_]+_kernel)(?:I(f|NS_4bf16E|NS_4fp16E)E)?")
TYPES = {"f": "fp32", "NS_4bf16E": "bf16", "NS_4fp16E": "fp16", None: ""}

Kernel = dict[str, int]


def find_cuobjdump() -> str | None:
    """The disassembler, or None."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends/nvidia/bin" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (shutil.which("cuobjdump", path=str(bundled)) if bundled else None)


def nvcc_release(nvcc: str) -> str:
    """As "13.0"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text).group(1)


def knows(nvcc: str, architecture: str) -> bool:
    """Whether this nvcc makes code for an architecture."""
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return f"sm_{architecture}" in known.split()


def readable(mangled: str) -> str:
    """branch_step_kernel bf16"""
    kernel, dtype = NAME.search(re.sub(r"^.*_cu_[0-9a-f]{8}", "", mangled)).groups()
    return f"{kernel} {TYPES[dtype]}".strip()


def accesses(sass: str) -> dict[str, Counter[str]]:
    """Memory instructions of each function, by name."""
    counts: dict[str, Counter[str]] = {}
    for function, body in re.findall(r"Function : (\S+)\n(.*?)(?=Function :|\Z)", sass, re.DOTALL):
        counts[function] = Counter(re.findall(r"\b((?:LDG|STG|LDL|STL)[.A-Z0-9]*)", body))
    return counts


def measure(nvcc: str, cuobjdump: str, architecture: str) -> dict[str, Kernel]:
    """Compile every .cu of csrc/cuda for one architecture, in one unit, and report each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        unit, cubin = Path(folder) / "all_cu.cu", Path(folder) / "all.cubin"
        unit.write_text("".join(f'#include "{path}"\n' for path in sorted(SOURCES.glob("*.cu"))))
        command = [nvcc, *FLAGS, "-cubin", f"-arch=sm_{architecture}", str(unit), "-o", str(cubin)]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        sass = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    memory = accesses(sass)
    table = {}
    for name, *numbers in RESOURCES.findall(log):
        stack, stores, loads, registers = map(int, numbers)
        uses = memory[name]
        table[readable(name)] = {
            "registers": registers,
            "stack_bytes": stack,
            "spill_bytes": stores + loads,
            "local_accesses": sum(count for use, count in uses.items() if use.startswith(("LDL", "STL"))),
            "loads_128": sum(count for use, count in uses.items() if use.startswith("LDG") and ".128" in use),
            "stores_128": sum(count for use, count in uses.items() if use.startswith("STG") and ".128" in use),
        }
    return dict(sorted(table.items()))


def main() -> None:
    """Write the table of this machine's nvcc."""
    nvcc, cuobjdump = shutil.which("nvcc"), find_cuobjdump()
    if not nvcc or not cuobjdump:
        raise SystemExit("nvcc and cuobjdump are needed")
    kernels = {f"sm_{architecture}": measure(nvcc, cuobjdump, architecture) for architecture in ARCHITECTURES}
    text = json.dumps({"nvcc": nvcc_release(nvcc), "kernels": kernels}, indent=1)
    one_line_each = re.sub(r"\{[^{}]*\}", lambda facts: " ".join(facts.group().split()), text)
    TABLE.write_text(one_line_each + "\n")


if __name__ == "__main__":
    main()
