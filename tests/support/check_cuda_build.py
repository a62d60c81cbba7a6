"""Checks a build for CUDA where there is no GPU: `make cuda-build` runs this with the built package on the path.

The library must load into a CUDA torch, have a CPU and a CUDA body of every op, and its CPU bodies must give what the
reference gives. Exits with a sentence where one of these fails.
"""

from __future__ import annotations

import sys

import torch

from support.op_inputs import NAMESPACES, op_inputs
from tempflow_fast import info
from tempflow_fast.ops import native
from tempflow_fast.ops.bodies import OPS


def main() -> None:
    """Print what was built and which ops were run."""
    if torch.version.cuda is None:
        sys.exit(f"torch {torch.__version__} is no CUDA build")
    if not native.build_info().get("cuda"):
        sys.exit(f"the library has no CUDA kernels: {native.reason}, {native.build_record()}")
    for op in OPS:
        for key in ("CPU", "CUDA"):
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"tempflow_fast::{op}", key):
                sys.exit(f"{op} has no {key} body")
    for name, arguments in op_inputs(torch.float32).items():
        with torch.no_grad():
            got, want = (getattr(getattr(torch.ops, space), name)(*arguments) for space in NAMESPACES)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    print(info())
    print(f"{len(OPS)} ops have CPU and CUDA bodies; the CPU bodies give what the reference gives")


if __name__ == "__main__":
    main()
