"""The compiled CPU bodies under the address, undefined-behaviour and thread sanitizers, with random calls.

The CUDA bodies run under the first two in test_cuda_emulated.py; there, one thread plays all others, and races show as
results that depend on the order of blocks and threads.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT

COMPILER = shutil.which("g++")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not COMPILER, reason="no g++")]
FLAGS = ["-std=c++17", "-O1", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
FLAGS += ["-fno-sanitize-recover=all", "-isystem", "tests/support/native_stable"]
ISAS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-DTF_X86")
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = [*ISAS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
OPS = [
    "csrc/cpu/dispatch.cpp",
    "csrc/cpu/sample_ops.cpp",
    "csrc/cpu/loss_ops.cpp",
    "tests/support/native_sanitized.cpp",
]


def build(sanitizers: str, folder: Path) -> Path:
    """The program of native_sanitized.cpp with every instruction set, as CMakeLists.txt compiles them."""
    command = [COMPILER, *FLAGS, f"-fsanitize={sanitizers}"]
    objects = []
    for isa, flags in ISAS.items():
        objects.append(str(folder / f"{isa}.o"))
        kernels = [*flags, f"-DTF_ISA={isa}", "-c", "csrc/cpu/kernels.cpp", "-o", objects[-1]]
        subprocess.run([*command, *kernels], check=True, cwd=ROOT)
    subprocess.run([*command, *OPS, *objects, "-pthread", "-o", str(folder / "program")], check=True, cwd=ROOT)
    return folder / "program"


@pytest.mark.parametrize(("sanitizers", "calls"), [("address,undefined", 500), ("thread", 80)])
def test_random_calls_are_clean_and_equal_on_every_instruction_set(sanitizers, calls, tmp_path):
    program = build(sanitizers, tmp_path)
    done = subprocess.run([program, str(calls)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout == "done\n"
