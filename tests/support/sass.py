"""nvcc's machine code for csrc/cuda, as a table: registers, memory that must stay unused, and the width of accesses.

cd tests && python -m support.sass    compile and write the table to csrc/cuda/registers.json
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from support import ROOT
from support.cubin import Kernel, find_cuobjdump, inspect

SOURCES = ROOT / "csrc/cuda"
TABLE = SOURCES / "registers.json"
ARCHITECTURES = ("80", "90", "100")
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v")  # as CMakeLists.txt

SPILLS = re.compile(
    r"Function properties for (\S+)\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
NAME = re.compile(r"([a-z_]+_kernel)(?:I(f|NS_4bf16E|NS_4fp16E)E)?")
TYPES = {"f": "fp32", "NS_4bf16E": "bf16", "NS_4fp16E": "fp16", None: ""}


def nvcc_release(nvcc: str) -> str:
    """The release of nvcc, such as "13.0"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\d+\.\d+)", text).group(1)


def knows(nvcc: str, architecture: str) -> bool:
    """Whether this nvcc can compile for an architecture."""
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return f"sm_{architecture}" in known.split()


def readable(mangled: str) -> str:
    """A kernel's name for the table, such as "branch_step_kernel bf16"."""
    kernel, dtype = NAME.search(re.sub(r"^.*_cu_[0-9a-f]{8}", "", mangled)).groups()
    return f"{kernel} {TYPES[dtype]}".strip()


def measure(nvcc: str, cuobjdump: str, architecture: str) -> dict[str, Kernel]:
    """The facts of every kernel in csrc/cuda, compiled for one architecture as a single unit."""
    with tempfile.TemporaryDirectory() as folder:
        unit, cubin = Path(folder) / "all_cu.cu", Path(folder) / "all.cubin"
        unit.write_text("".join(f'#include "{path}"\n' for path in sorted(SOURCES.glob("*.cu"))))
        command = [nvcc, *FLAGS, "-cubin", f"-arch=sm_{architecture}", str(unit), "-o", str(cubin)]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        kernels = inspect(cubin.read_bytes(), cuobjdump)
    said = {name: [int(number) for number in numbers] for name, *numbers in SPILLS.findall(log)}
    for name, facts in kernels.items():  # only ptxas knows which part of the stack holds spilled registers
        stack, stores, loads = said[name]
        facts |= {"stack_bytes": max(stack, facts["stack_bytes"]), "spill_bytes": stores + loads}
    return dict(sorted((readable(name), facts) for name, facts in kernels.items()))


def main() -> None:
    """Writes the table for this machine's nvcc."""
    nvcc, cuobjdump = shutil.which("nvcc"), find_cuobjdump()
    if not nvcc or not cuobjdump:
        raise SystemExit("nvcc and cuobjdump are needed")
    kernels = {f"sm_{architecture}": measure(nvcc, cuobjdump, architecture) for architecture in ARCHITECTURES}
    text = json.dumps({"nvcc": nvcc_release(nvcc), "kernels": kernels}, indent=1)
    one_line_each = re.sub(r"\{[^{}]*\}", lambda facts: " ".join(facts.group().split()), text)
    TABLE.write_text(one_line_each + "\n")


if __name__ == "__main__":
    main()
