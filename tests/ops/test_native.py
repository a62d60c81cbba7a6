"""The compiled library is there, and its Philox gives the published words."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest
import torch
from support import ROOT
from support.philox import KNOWN_ANSWERS

from tempflow_fast.ops import native, noise

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def test_the_library_is_there_where_a_compiler_and_a_new_enough_torch_are():
    has_interface = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
    assert native.loaded() or not (COMPILER and has_interface), f"compiled kernels missing: {native.reason}"


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    if not COMPILER:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("harness") / "harness.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas"]
    simd = ["-mavx2", "-mfma"] if native.cpu_isa() in ("avx2", "avx512") else []
    source = ROOT / "tests/support/native_harness.cpp"
    subprocess.run([COMPILER, *flags, *simd, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


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
