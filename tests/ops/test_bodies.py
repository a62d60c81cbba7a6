"""Which body serves the ops: what the environment asks for, what is there, and what info() says about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, check_cuda_build

import tempflow_fast
from tempflow_fast.ops import bodies, native

REPORT = """
import tempflow_fast as t
facts = t.info()
print(facts["native"], facts["cpu"], facts["cuda"], *(facts[op] for op in t.ops.bodies.OPS), sep="\\n")
import torch
table, x = t.step_table(t.linear_sigmas(4)), torch.arange(12.0).view(2, 6).requires_grad_()
moved, branches, log_prob = t.ops.branch_step(x.detach(), x.detach(), table, 1, 3, 0, [0, 1])
t.ops.policy_loss(x, moved, branches, x.detach(), log_prob, table, [1, 1]).loss.backward()
assert x.grad.isfinite().all() and x.grad.any()
"""
BUILT = {"cuda": "13.0", "cuda_arch": "80", "compiler": "c++", "torch": "2.13", "torch_target": "2.13"}
# Imports native.py before the package around it decides which bodies to use, so that a test can change it first.
NATIVE = f"""
import sys, types
package = types.ModuleType('tempflow_fast.ops')
package.__path__ = [{str(Path(bodies.__file__).parent)!r}]
sys.modules[package.__name__] = package
from tempflow_fast.ops import native
del sys.modules[package.__name__]
"""
# A library without CUDA kernels pretends to have them. Nothing is launched, so a record of the build and an entry in
# the dispatcher's table are enough.
PLAY_CUDA = f"""{NATIVE}
import torch; torch.version.cuda = '13.0'
native.build_info = lambda: {BUILT}
kernels = torch.library.Library('tempflow_fast', 'IMPL')
for op in {bodies.OPS}: kernels.impl(op, print, 'CUDA')
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TEMPFLOW", "TRITON"))}
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False, cwd=ROOT)


def report(**environment: str) -> tuple[list[str], list[str], str]:
    """The reasons, the bodies of all ops, and the standard error; the CPU's bodies have worked."""
    done = python(environment.pop("before", "") + REPORT, **environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return lines[:3], lines[3:], done.stderr


def test_info_names_the_live_body_of_every_op():
    facts = tempflow_fast.info()
    expected = f"cpu: native ({native.cpu_isa()})" if native.loaded() else "cpu: reference"
    for op in bodies.OPS:
        assert facts[op].startswith(expected)
        assert facts[op].endswith("float64: reference")
        assert f"{op} " in str(facts)
    assert facts["torch"] == torch.__version__
    if not torch.version.cuda:
        assert facts["cuda"] == f"torch {torch.__version__} serves no GPU"


@pytest.mark.slow
def test_reference_leaves_everything_else_out():
    why, served, error = report(TEMPFLOW_FAST_BODY="reference")
    assert why == ["TEMPFLOW_FAST_BODY=reference"] * 3
    assert set(served) == {"cpu: reference; cuda: reference; float64: reference"}
    assert "RuntimeWarning" not in error


@pytest.mark.slow
def test_cuda_kernels_need_no_triton():
    """As on Windows."""
    before = "import sys; sys.modules['triton'] = None\n" + ("" if native.build_info().get("cuda") else PLAY_CUDA)
    why, served, error = report(before=before)
    cpu = f"native ({native.cpu_isa()})" if native.loaded() else "reference"
    assert set(served) == {f"cpu: {cpu}; cuda: native; float64: reference"}
    assert why[2].startswith("compiled by nvcc 13.0")
    assert not native.loaded() or "RuntimeWarning" not in error


@pytest.mark.slow
def test_triton_alone_serves_gpus():
    triton = pytest.importorskip("triton")
    why, served, error = report(TEMPFLOW_FAST_BODY="triton")
    assert why[:2] == ["TEMPFLOW_FAST_BODY=triton"] * 2
    assert why[2] == f"TEMPFLOW_FAST_BODY=triton; Triton {triton.__version__}"
    assert set(served) == {"cpu: reference; cuda: triton; float64: reference"}
    assert "RuntimeWarning" not in error


@pytest.mark.slow
def test_a_gpu_is_served_by_triton_where_the_library_has_no_cuda_kernels():
    """Only the version makes this torch one for CUDA: nothing is launched."""
    pytest.importorskip("triton")
    if native.build_info().get("cuda"):
        pytest.skip("this library has CUDA kernels")
    why, served, _ = report(before="import torch; torch.version.cuda = '13.0'\n")
    cpu = f"native ({native.cpu_isa()})" if native.loaded() else "reference"
    assert set(served) == {f"cpu: {cpu}; cuda: triton; float64: reference"}
    assert "; Triton 3" in why[2]


@pytest.mark.slow
def test_without_library_and_triton_the_reference_serves_all():
    before = "import torch, sys, pathlib; torch.version.cuda = '13.0'; sys.modules['triton'] = None\n"
    before += NATIVE + "native.LIBRARY = pathlib.Path('nowhere')\n"
    why, served, error = report(before=before)
    assert set(served) == {"cpu: reference; cuda: reference; float64: reference"}
    assert "Triton or its kernels are missing" in why[2]
    assert error.count("the compiled kernels are missing") == 1


def test_what_is_asked_for_and_missing_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "tempflow_fast.kernels", None)
    with pytest.raises(ImportError, match="TEMPFLOW_FAST_BODY=triton, but Triton or its kernels are missing"):
        bodies._triton(required=True)
    monkeypatch.setattr(native, "LIBRARY", Path("nowhere"))
    monkeypatch.setattr(native, "reason", native.reason)  # put back afterwards
    with pytest.raises(ImportError, match="TEMPFLOW_FAST_BODY=native, but the compiled kernels are missing"):
        native.load(required=True)
    monkeypatch.setenv("TEMPFLOW_FAST_BODY", "fast")
    with pytest.raises(ValueError, match="TEMPFLOW_FAST_BODY must be native, triton or reference, got 'fast'"):
        bodies.settle()


@pytest.mark.parametrize(
    ("cuda", "hip", "problem"),
    [("13.2", None, ""), ("12.9", None, "nvcc 13.0 compiled them"), (None, "7.0", "is for ROCm"), (None, None, "")],
)
def test_cuda_kernels_are_used_where_torch_brings_their_driver(monkeypatch, cuda, hip, problem):
    monkeypatch.setattr(native, "build_info", lambda: BUILT)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    said = bodies._library_problem()
    assert problem in said
    assert bool(problem) is bool(said)


@pytest.mark.slow
def test_cuda_kernels_that_cannot_run_are_left_alone():
    """The library's word about its build is replaced by that of one with CUDA kernels."""
    pytest.importorskip("triton")
    _, served, error = report(before=f"{PLAY_CUDA}\ntorch.version.cuda = '12.9'\n")
    assert {line.split("; ")[1] for line in served} == {"cuda: triton"}
    assert "does not use its compiled CUDA kernels: nvcc 13.0 compiled them" in error
    assert "Overriding a previously registered kernel" not in error


def test_a_build_for_cuda_is_checked():
    """What `make cuda-build` runs: there it passes, and any other build is told what it lacks."""
    if torch.version.cuda and native.build_info().get("cuda"):
        check_cuda_build.main()
    else:
        with pytest.raises(SystemExit, match=r"is no CUDA build|the library has no CUDA kernels"):
            check_cuda_build.main()
