"""The compiled sources beyond the ops' values: the library, its Philox, the CUDA kernel compiled and emulated."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_noise import KNOWN_ANSWERS

import tempflow_fast
from tempflow_fast import linear_sigmas, native, noise, ops, step_table

ROOT = Path(__file__).parents[1]
TABLE = step_table(linear_sigmas(6, 3.0))
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
NVCC = shutil.which("nvcc")


def test_the_library_is_there_where_a_compiler_is():
    assert native.loaded() or not COMPILER, f"compiled kernels missing: {native.reason}"


def test_info_names_the_live_body_of_every_op():
    facts = tempflow_fast.info()
    expected = f"cpu: native ({native.cpu_isa()})" if native.loaded() else "cpu: reference"
    for op in ("guided_velocity", "euler_step", "branch_step", "initial_noise", "log_prob", "policy_loss"):
        assert facts[op].startswith(expected)
        assert facts[op].endswith("float64: reference")
        assert f"{op} " in str(facts)
    assert facts["torch"] == torch.__version__


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "always", "-c", code]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_environment_can_force_a_body():
    report = "import tempflow_fast as t; print(t.info()['branch_step'], '|', t.native.reason)"
    done = python(report, TEMPFLOW_FAST_BODY="reference")
    assert done.stdout.strip() == "cpu: reference; cuda: reference; float64: reference | TEMPFLOW_FAST_BODY=reference"
    assert "RuntimeWarning" not in done.stderr
    assert "must be native or reference, got 'fast'" in python(report, TEMPFLOW_FAST_BODY="fast").stderr


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    if not COMPILER:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("harness") / "harness.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas", "-DTF_EMULATE"]
    simd = ["-mavx2", "-mfma"] if native.cpu_isa() in ("avx2", "avx512") else []
    sources = [str(ROOT / "tests/native_harness.cpp"), str(ROOT / "csrc/cuda/branch.cu")]
    subprocess.run([COMPILER, *flags, *simd, "-x", "c++", *sources, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.emulated_branch_step.restype = ctypes.c_char_p
    return loaded


def words(*values: int) -> ctypes.Array:
    return (ctypes.c_uint32 * len(values))(*values)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_in_cpp_gives_the_published_words(harness, counter, key, expected):
    got = words(*counter)
    harness.scalar_words(got, words(*key))
    assert tuple(got) == expected
    quads = 32
    block = words(*[0] * (4 * quads))
    harness.vector_words(block, ctypes.c_uint32(counter[0]), quads, words(*counter[1:]), words(*key))
    assert tuple(block[j * quads] for j in range(4)) == expected


def test_words_in_cpp_and_python_are_identical(harness):
    quads, step, branch, seed, trajectory = 64, 3, 2, 2**50 + 7, 2**41 + 9
    block = words(*[0] * (4 * quads))
    rest, key = (
        words(branch | step << 16, trajectory & 0xFFFFFFFF, trajectory >> 32),
        words(seed & 0xFFFFFFFF, seed >> 32),
    )
    harness.vector_words(block, ctypes.c_uint32(0), quads, rest, key)
    got = torch.tensor(list(block)).unflatten(0, (4, quads)).T.flatten()
    want = noise.words(torch.tensor([trajectory]), torch.tensor(seed), step, branch + 1, 4 * quads)[0, branch]
    assert torch.equal(got, want)


@pytest.mark.skipif(not native.loaded(), reason="nothing to compare with")
@pytest.mark.parametrize(("dtype", "code"), [(torch.float32, 0), (torch.bfloat16, 1), (torch.float16, 2)], ids=str)
@pytest.mark.parametrize(("numel", "quads"), [(3, False), (1000, True), (1001, False), (2048, True)])
def test_the_cuda_kernel_emulated_on_the_cpu_gives_the_same_bits(harness, dtype, code, numel, quads):
    n, k, step, ids, seed = 2, 3, 2, torch.tensor([5, 2**35]), torch.tensor(99)
    generator = torch.Generator().manual_seed(numel)
    latents, velocity, uncond = (torch.randn(n, numel, generator=generator).to(dtype) for _ in range(3))
    moved, branches = torch.full_like(latents, torch.nan), torch.full((n, k, numel), torch.nan, dtype=dtype)
    log_prob, partial = torch.full((n, k), torch.nan), torch.full((n, k, (numel + 1023) // 1024), torch.nan)
    row = TABLE.coefficients()[step].contiguous()

    def at(tensor: torch.Tensor) -> ctypes.c_void_p:
        return ctypes.c_void_p(tensor.data_ptr())

    def size(value: int) -> ctypes.c_int64:
        return ctypes.c_int64(value)

    error = harness.emulated_branch_step(
        code, at(latents), at(velocity), at(uncond), ctypes.c_float(4.5), at(row), ctypes.c_uint32(step), at(seed),
        at(ids), at(moved), at(branches), at(partial), at(log_prob), size(n), size(k), size(numel),
        ctypes.c_bool(quads),
    )  # fmt: skip
    assert error is None
    want = ops.branch_step(latents, velocity, TABLE, step, k, 99, ids, uncond, 4.5)
    exact = native.cpu_isa() != "baseline"  # without fma the last bit may differ
    for got, expected in zip((moved, branches), want, strict=False):
        assert torch.equal(got, expected) if exact else torch.allclose(got.float(), expected.float(), atol=1e-5)
    torch.testing.assert_close(log_prob, want[2], rtol=1e-6, atol=2e-6)


@pytest.mark.skipif(not NVCC, reason="no nvcc")
def test_the_cuda_kernel_compiles_without_spills_or_stack(tmp_path):
    command = [NVCC, "-std=c++17", "-O3", "-fmad=false", "-gencode", "arch=compute_90,code=sm_90", "-Xptxas", "-v"]
    command += ["-c", str(ROOT / "csrc/cuda/branch.cu"), "-o", str(tmp_path / "branch.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(frames) == 4  # three dtypes and the log-density
    assert set(frames) == {("0", "0", "0")}
