"""The ops against eager PyTorch and torch.compile."""

from __future__ import annotations

import pytest
import torch

from . import op_cases

ODD = 65_537
SIZES = (65_536, 262_144, ODD)
"""Of SD3.5 Medium at 512 px, at 1024 px, and one that no vector length divides."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUICK = ("fp32", ODD)
ROUNDS = {65_536: 40, 262_144: 15, ODD: 40}
SHAPES = [
    pytest.param(dtype, numel, id=f"{dtype}-{numel}", marks=[] if (dtype, numel) == QUICK else pytest.mark.full)
    for numel in SIZES
    for dtype in DTYPES
    if numel != ODD or dtype == "fp32"
]


def measure(compare, case: op_cases.Case, op: str, dtype: str, numel: int) -> None:
    torch._dynamo.reset()
    facts = {"num_bytes": case.num_bytes, "num_outputs": case.num_outputs}
    compare(op, f"{dtype}, D = {numel:,}", case.with_copy(), ROUNDS[numel], warm_up=2, **facts)


@pytest.mark.gate("tests/ops/test_ops.py", "-k", "branch_and_euler")
@pytest.mark.parametrize(("dtype", "numel"), SHAPES)
@pytest.mark.parametrize("op", ["branch_step", "euler_step"])
def test_move(compare, op, dtype, numel):
    measure(compare, getattr(op_cases, op)(DTYPES[dtype], numel), op, dtype, numel)


@pytest.mark.gate("tests/ops/test_ops.py", "-k", "policy_loss or first_update or log_prob")
@pytest.mark.parametrize(("dtype", "numel"), SHAPES)
@pytest.mark.parametrize("op", ["log_prob", "policy_loss"])
def test_density(compare, op, dtype, numel):
    measure(compare, getattr(op_cases, op)(DTYPES[dtype], numel), op, dtype, numel)


@pytest.mark.full
@pytest.mark.gate("tests/ops/test_ops.py", "-k", "policy_loss or first_update")
@pytest.mark.parametrize("numel", SIZES[:2])
def test_first_update(compare, numel):
    case = op_cases.policy_loss(torch.float32, numel, changed=False)
    measure(compare, case, "policy_loss, first update", "fp32", numel)
