"""Fixtures shared by the suite."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from tempflow_fast.ops import native, registration

INTERPRETING = os.environ.get("TEMPFLOW_FAST_BODY") == "triton"  # the process that test_triton.py starts
# A background job of a shell ignores Ctrl-C, and so would the programs that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

BODIES = ("triton",) if INTERPRETING else ("reference", "baseline", "avx2", "avx512")
if INTERPRETING:
    from support import interpreter

    interpreter.fix()


@pytest.fixture
def poisoned():
    """torch.empty hands out NaN, so that an element which a body forgets cannot pass for a result."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=BODIES)
def body(request, monkeypatch):
    """Every body that this machine can run, one after another."""
    if request.param == "reference":
        monkeypatch.setattr(registration, "namespace", lambda dtype: "tempflow_fast_reference")
        yield request.param
        return
    if request.param == "triton":
        yield request.param
        return
    usual = native.cpu_isa()
    if not native.force_cpu_isa(request.param):
        pytest.skip(f"no {request.param} kernels in this build or on this machine")
    yield request.param
    native.force_cpu_isa(usual)
