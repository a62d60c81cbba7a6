"""The same cases for pytest-benchmark: `python -m pytest bench`, with its comparisons and histories."""

from __future__ import annotations

import pytest
import torch

from .cases import OPS, SHAPES, gate


@pytest.fixture(scope="module", params=OPS)
def op(request) -> str:
    gate(request.param)
    return request.param


@pytest.fixture(scope="module", params=SHAPES)
def candidates(request, op):
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield OPS[op](*SHAPES[request.param])
    torch.set_num_threads(usual)


@pytest.mark.parametrize("index", range(5))
def test_time(benchmark, request, op, candidates, index):
    name, call = list(candidates.items())[index]
    benchmark.group = f"{op} {request.node.callspec.params['candidates']}"
    benchmark.name = name
    call()
    benchmark(call)
