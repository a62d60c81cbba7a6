"""Compiles every Triton kernel for GPUs that this machine lacks and prints facts about the machine code as JSON.

    cd tests && python -m support.triton_aot            for test_triton.py, which compares it with the table
    cd tests && python -m support.triton_aot --write    writes the table, kernels/registers.json

The ops' bodies run as on a GPU, with tensors on the CPU; only the launch is replaced, by the compiler for the wanted
target. So types, alignments and compile-time arguments are those of a launch.
"""

from __future__ import annotations

import collections
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import triton
from tempflow_fast.kernels import density, loss, sample
from tempflow_fast.kernels.launch import THREADS
from triton.backends.compiler import GPUTarget

from support import ROOT
from support.cubin import Kernel, find_cuobjdump, inspect
from tempflow_fast import kernels, linear_sigmas, step_table

TABLE = ROOT / "kernels" / "registers.json"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
ROWS, BRANCHES, NUMEL = 2, 6, 65536  # SD3.5 Medium at 512 px


class Driver:
    """The parts of a driver that the compiler uses."""

    def __init__(self, target: GPUTarget) -> None:
        self.get_current_target = lambda: target
        self.get_current_device = lambda: str(target)
        self.get_current_stream = lambda device: 0


def compile_ops(dtype: torch.dtype, numel: int, full: bool) -> dict[str, Any]:
    """The compiled kernels of all ops, by name; `full` includes guidance, reference velocity and gradient."""
    compiled = {}

    def compile_only(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: int) -> None:
        warps = THREADS.value // triton.runtime.driver.active.get_current_target().warp_size
        compiled[kernel.fn.__name__] = kernel.warmup(
            *arguments, grid=(programs,), num_warps=warps, enable_fp_fusion=False, **constants
        )

    for module in (sample, density, loss):
        module.launch = compile_only
    x, v, u, old, ref = (torch.empty(ROWS, numel, dtype=dtype) for _ in range(5))
    branches = torch.empty(ROWS, BRANCHES, numel, dtype=dtype)
    if not full:
        u, ref = None, None
    coefficients = step_table(linear_sigmas(10)).coefficients()
    steps, ids, advantages = torch.zeros(ROWS).long(), torch.arange(ROWS), torch.empty(ROWS, BRANCHES)
    kernels.euler_step(x, v, u, 4.5, coefficients, 3)
    kernels.branch_step(x, v, u, 4.5, coefficients, 3, BRANCHES, torch.tensor(0), ids)
    kernels.policy_loss(v, u, x, branches, old, ref, advantages, coefficients, steps, 4.5, 1e-4, 0.1, full)
    if full:
        kernels.guided_velocity(v, u, 4.5)
        kernels.log_prob(branches[:, 0], x, v, coefficients, steps)
        kernels.log_prob_backward(torch.empty(ROWS), branches[:, 0], x, v, coefficients, steps)
        if dtype == torch.float32:
            kernels.initial_noise(ids, torch.tensor(0), numel)
    return compiled


def inspect_amd(code: str) -> Kernel:
    """The facts of cubin.inspect for a kernel of an AMD GPU, from its assembly."""

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", code).group(1))

    def count(instruction: str) -> int:
        return len(re.findall(rf"\b{instruction}", code))

    return {
        "registers": number("vgpr_count"),
        "stack_bytes": number("private_segment_fixed_size"),
        "spill_bytes": number("vgpr_spill_count"),  # spilled scalar registers go to lanes of vector registers
        "local_accesses": count("scratch_(?:load|store)"),
        "float_atomics": count(r"(?:global|buffer|flat)_atomic_\w*f(?:16|32|64)"),
        "loads_128": count("(?:global|buffer)_load_dwordx4"),
        "stores_128": count("(?:global|buffer)_store_dwordx4"),
    }


def inspected(compiled: Any, target: GPUTarget) -> Kernel:
    """The facts of the one function of a compiled kernel."""
    if target.backend == "hip":
        return inspect_amd(compiled.asm["amdgcn"])
    (facts,) = inspect(compiled.asm["cubin"], find_cuobjdump()).values()
    return facts


def inspect_all() -> dict[str, dict[str, dict[str, Kernel]]]:
    """kernel -> variant -> target -> facts. The variants are dtypes, and one without the optional arguments."""
    figures: dict[str, Any] = collections.defaultdict(lambda: collections.defaultdict(dict))
    with ThreadPoolExecutor() as pool:  # the disassembler takes as long as the compiler
        for name, target in TARGETS.items():
            triton.runtime.driver.set_active(Driver(target))
            variants = {"float32": (torch.float32, NUMEL, True), "bfloat16": (torch.bfloat16, NUMEL, True)}
            if name == "sm_90":
                variants["float16, odd, optional arguments left out"] = (torch.float16, 1001, False)
            for variant, (dtype, numel, full) in variants.items():
                for kernel, compiled in compile_ops(dtype, numel, full).items():
                    figures[kernel][variant][name] = pool.submit(inspected, compiled, target)
    return {
        kernel: {
            variant: {target: found.result() for target, found in targets.items()}
            for variant, targets in variants.items()
        }
        for kernel, variants in figures.items()
    }


def registers(figures: dict[str, Any]) -> dict[str, Any]:
    """The contents of kernels/registers.json."""
    table = {
        kernel: {
            variant: {target: found["registers"] for target, found in targets.items()}
            for variant, targets in variants.items()
        }
        for kernel, variants in figures.items()
    }
    return {"triton": triton.__version__, "registers": table}


if __name__ == "__main__":
    everything = inspect_all()
    if "--write" in sys.argv:
        TABLE.write_text(json.dumps(registers(everything), indent=1) + "\n")
    print(json.dumps(everything, indent=1))
