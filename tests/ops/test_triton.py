"""The Triton kernels without a GPU: executed in Triton's interpreter, and compiled ahead of time for four GPUs.

Both need a process of their own: the interpreter replaces the compiler when Triton is imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, TESTS
from support.cubin import NOT_USED

from tempflow_fast import linear_sigmas, ops, step_table
from tempflow_fast.ops import native

pytest.importorskip("triton")
# Every op and dtype at sizes below, at and above that of a program; all bodies share the other cases of test_ops.py.
SELECTION = "not -63- and not -1- and not (4097 and (fp16 or plain))"
# Of the properties, that every body gives what the reference allows for drawn calls.
SELECTION += " and not bounds and not threads and not order and not average and not line and not seconds"
# Of the normalised ratio, what its bodies compute.
SELECTION += " and not hessians and not spread"


def save_native_results(path: Path) -> None:
    """Saves a few inputs and the results of the compiled CPU body for them."""
    table, cases = step_table(linear_sigmas(8, 3.0)), []
    for dtype, numel in ((torch.float32, 1027), (torch.bfloat16, 2056), (torch.float16, 37)):
        generator = torch.Generator().manual_seed(numel)
        latents, velocity, uncond = (torch.randn(2, numel, generator=generator).to(dtype) for _ in range(3))
        steps, ids, seed = torch.tensor([1, 4]), torch.tensor([5, 2**35]), 2**40 + 3
        moved, branches, log_prob = ops.branch_step(latents, velocity, table, 3, 3, seed, ids, uncond, 4.5)
        arguments = (torch.ones(2), branches[:, 0], latents, velocity, table.coefficients(), steps)
        cases.append({
            "inputs": (latents, velocity, uncond, steps), "seed": seed, "ids": ids,
            "moved": moved, "branches": branches, "log_prob": log_prob,
            "guided": ops.guided_velocity(velocity, uncond, 4.5), "noise": ops.initial_noise((numel,), seed, ids),
            "backward": torch.ops.tempflow_fast.log_prob_backward(*arguments),
        })  # fmt: skip
    torch.save(cases, path)


@pytest.mark.slow
def test_in_the_interpreter(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TEMPFLOW_FAST_BODY": "triton"}
    if native.cpu_isa() in ("avx2", "avx512"):
        environment["TEMPFLOW_TEST_NATIVE"] = str(tmp_path / "native.pt")
        save_native_results(tmp_path / "native.pt")
    names = ("support/triton_kernels.py", "ops/test_ops.py", "ops/test_properties.py", "ops/test_ratio_norm.py")
    files = [str(TESTS / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SELECTION, *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout or "TEMPFLOW_TEST_NATIVE" not in environment


# 16-byte loads and stores: one per row, or per group of branches, that a kernel reads or writes. A float32 gradient of
# 16-bit data takes two stores per thread. log_density_kernel only reads partial sums.
WIDE = {
    "guided_velocity_kernel": (2, 1),
    "euler_step_kernel": (3, 1),
    "branch_step_kernel": (3, 2),
    "initial_noise_kernel": (0, 1),
    "log_prob_kernel": (3, 0),
    "log_prob_backward_kernel": (3, 1),
    "loss_sums_kernel": (7, 1),
    "loss_gradient_kernel": (9, 1),
}

VERSION = importlib.metadata.version("triton").rpartition(".")[0]
# Two versions of Triton keep 8 bytes of one kernel in memory: docs/gpu-kernels.md.
KEEPING, KEPT_ON_THE_STACK = ("loss_gradient_kernel", "sm_100"), {"stack_bytes": 8, "local_accesses": 2}


@pytest.mark.slow
def test_compiled_for_gpus():
    command = [sys.executable, "-m", "support.triton_aot"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout)
    assert set(figures) == set(WIDE) | {"log_density_kernel"}
    for kernel, variants in figures.items():
        for variant, targets in variants.items():
            for target, found in targets.items():
                where = f"{kernel} {variant} {target}: {found}"
                allowed = KEPT_ON_THE_STACK if (kernel, target) == KEEPING and VERSION in ("3.6", "3.7") else {}
                assert all(found[fact] <= allowed.get(fact, 0) for fact in NOT_USED), where
                # Three or four programs of 256 threads on a multiprocessor: enough accesses in flight (docs/gpu.md).
                # Odd rows, which no model has, may do with two.
                assert found["registers"] <= (112 if "odd" in variant else 80), where
                if kernel in WIDE and "odd" not in variant:  # odd rows are accessed element by element
                    loads, stores = WIDE[kernel]
                    stores += kernel in ("loss_sums_kernel", "loss_gradient_kernel") and variant == "bfloat16"
                    assert (found["loads_128"], found["stores_128"]) == (loads, stores), where
        assert set(variants["float32"]) == {"sm_80", "sm_90", "sm_100", "gfx942"}
    committed = json.loads((ROOT / "kernels/registers.json").read_text())
    if committed["triton"] == importlib.metadata.version("triton"):
        said = {k: {v: {t: f["registers"] for t, f in ts.items()} for v, ts in vs.items()} for k, vs in figures.items()}
        assert said == committed["registers"], "kernels/registers.json: make it with support.triton_aot --write"
