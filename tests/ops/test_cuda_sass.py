"""The machine code of the CUDA kernels, compared with the committed table (sass.py writes it)."""

from __future__ import annotations

import json
import shutil

import pytest
from support.cubin import NOT_USED, Kernel, find_cuobjdump
from support.sass import ARCHITECTURES, TABLE, knows, measure, nvcc_release

NVCC, CUOBJDUMP = shutil.which("nvcc"), find_cuobjdump()
WANTED = json.loads(TABLE.read_text())
# Kernels without wide accesses: noise is written but not read, and the sums of first launches are a few floats.
NO_WIDE_LOADS = ("initial_noise_kernel", "log_density_kernel")
NO_WIDE_STORES = ("log_density_kernel", "log_prob_kernel")


def assert_lean(kernels: dict[str, Kernel]) -> None:
    """No local memory, no atomics on floats, and 128-bit accesses wherever latents are moved."""
    for name, facts in kernels.items():
        assert all(facts[key] == 0 for key in NOT_USED), (name, facts)
        assert (facts["loads_128"] > 0) == (not name.startswith(NO_WIDE_LOADS)), (name, facts)
        assert (facts["stores_128"] > 0) == (not name.startswith(NO_WIDE_STORES)), (name, facts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_committed_table_is_lean_and_has_every_kernel(architecture):
    kernels = WANTED["kernels"][f"sm_{architecture}"]
    assert_lean(kernels)
    ops = (
        "branch_step",
        "euler_step",
        "guided_velocity",
        "log_prob",
        "log_prob_backward",
        "loss_gradient",
        "loss_sums",
    )
    typed = {f"{op}_kernel {dtype}" for op in ops for dtype in ("fp32", "bf16", "fp16")}
    assert set(kernels) == typed | {"initial_noise_kernel", "log_density_kernel"}


@pytest.mark.slow
@pytest.mark.skipif(not NVCC or not CUOBJDUMP, reason="no nvcc, or no cuobjdump (part of CUDA and of Triton)")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_nvcc_makes_is_the_committed_table(architecture):
    if not knows(NVCC, architecture):
        pytest.skip(f"this nvcc does not make code for sm_{architecture}")
    got = measure(NVCC, CUOBJDUMP, architecture)
    assert_lean(got)
    if nvcc_release(NVCC) == WANTED["nvcc"]:  # another release counts its registers differently
        assert got == WANTED["kernels"][f"sm_{architecture}"]
