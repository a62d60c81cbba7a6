"""The CUDA kernels without torch on the device, called with random arguments: `python -m bench.gpu.harness PROGRAM`.

The program is tests/support/cuda_emulated.cpp, compiled by nvcc instead of a C++ compiler: a small process without
torch's own kernels and allocator, which a sanitizer checks in seconds. Calls, bounds and comparison are those of
tests/ops/test_cuda_emulated.py. Everything before PROGRAM, such as compute-sanitizer and its options, runs it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import Random

from .children import ROOT, run

SOURCE = ROOT / "tests" / "support" / "cuda_emulated.cpp"
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-lineinfo", "-x", "cu")


def build(nvcc: str, program: Path, architecture: str, seconds: float) -> None:
    """Compiles the program for a card.

    Args:
        nvcc: the compiler.
        program: its output.
        architecture: such as "sm_90".
        seconds: time limit.

    Raises:
        RuntimeError: with the compiler's last line.
    """
    program.parent.mkdir(parents=True, exist_ok=True)
    ran = run([nvcc, *FLAGS, f"-arch={architecture}", SOURCE, "-o", program], seconds)
    if ran.status:
        raise RuntimeError(f"nvcc: {ran.last_line if ran.in_time else f'not done after {seconds:.0f} s'}")


def compare_calls(command: list[str], num_draws: int) -> int:
    """Compares drawn calls of all ops with the float64 reference; returns their number.

    Args:
        command: runs the program.
        num_draws: of each op.

    Raises:
        AssertionError: the first difference, or what the program said when it ended.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from support.cuda_emulated import Emulator, results
    from support.op_bounds import compare
    from support.op_draws import OPS, draw_call

    program = Emulator(Path(command[0]), *command[1:])
    num_calls = 0
    try:
        for op in OPS:
            for seed in range(num_draws):
                call = draw_call(Random(seed), op)
                if op == "initial_noise" or len(call.arguments["velocity"]):
                    compare(call, results(program, call))
                    num_calls += 1
        program.process.stdin.close()  # it ends, and a sanitizer reports
        status = program.process.wait()
        assert status == 0, f"{command[0]} ended with status {status}"
    finally:
        program.process.kill()
    return num_calls


def main() -> None:
    """Print how many calls agreed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=40, help="of each op")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    print(f"{compare_calls(options.command, options.draws)} calls agree with the reference")


if __name__ == "__main__":
    main()
