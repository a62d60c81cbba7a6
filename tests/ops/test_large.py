"""Rows as long as a video's latents (D up to 4e7), and batches of more elements than 32 bits can count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tempflow_fast import linear_sigmas, ops, step_table

TABLE = step_table(linear_sigmas(6, 3.0))
LONG = 40_000_000
"""Elements of a long video's latents."""
MANY = 2**31 // LONG + 1
"""Rows of that length that are more than 2^31 elements together."""
GIB = 2**30

pytestmark = pytest.mark.slow


def need(num_bytes: int) -> None:
    """Skips where the machine has less memory to spare."""
    (available,) = re.findall(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    free = 1024 * int(available)
    if free < num_bytes + 2 * GIB:
        pytest.skip(f"needs {num_bytes / GIB:.1f} GiB of free memory, there are {free / GIB:.1f}")


def test_branches_of_a_long_row_beyond_32_bits():
    """The last branch begins beyond 2^31 elements. Its noise is that of a short row at the same elements, and a row on
    its own draws the same bits."""
    need(2 * LONG * (MANY + 4))
    latents = torch.linspace(-1, 1, LONG).bfloat16()[None]
    moved, branches, log_prob = ops.branch_step(latents, latents, TABLE, 2, MANY, 7, [5])
    assert branches.numel() > 2**31
    head = ops.branch_step(latents[:, :4096], latents[:, :4096], TABLE, 2, MANY, 7, [5])
    assert torch.equal(branches[0, -1, :4096], head[1][0, -1])
    assert torch.equal(moved[:, :4096], head[0])
    # The density of the last branch, by the op that reads it back, tells of all its elements.
    mean = ops.log_prob(branches[:, -1], latents, latents, TABLE, [2])
    torch.testing.assert_close(log_prob[:, -1], mean, rtol=1e-5, atol=1e-5)
    assert torch.equal(log_prob[0].isfinite(), torch.ones(MANY, dtype=torch.bool))


def test_the_loss_of_more_elements_than_32_bits_count():
    """One long row and its branch, seen by a stride of 0 as many: the mean over them is that of the one."""
    need(8 * LONG)
    generator = torch.Generator().manual_seed(0)
    x, v, v_old = (torch.randn(1, LONG, generator=generator).bfloat16() for _ in range(3))
    found = {}
    for num_rows in (1, MANY):
        velocity, old, latents = (tensor.expand(num_rows, LONG) for tensor in (v, v_old, x))
        advantages, steps = torch.ones(num_rows, 1), torch.full((num_rows,), 2)
        found[num_rows] = ops.policy_loss(velocity, latents, latents[:, None], old, advantages, TABLE, steps)
    assert found[MANY].log_ratio.unique().tolist() == found[1].log_ratio.flatten().tolist()
    torch.testing.assert_close(found[MANY].loss, found[1].loss)


def test_the_gradient_of_a_long_row():
    """In the last elements of the row, against the formula."""
    need(24 * LONG)
    generator = torch.Generator().manual_seed(0)
    x, v, old = (torch.randn(1, LONG, generator=generator) for _ in range(3))
    old = v + 1e-3 * old
    branches = (TABLE.a[2].float() * x + TABLE.b[2].float() * old)[:, None] + 0.3
    v.requires_grad_()
    out = ops.policy_loss(v, x, branches, old, torch.ones(1, 1), TABLE, [2], clip_range=0.9)
    (gradient,) = torch.autograd.grad(out.loss, v)
    a, b, s, weight = (float(getattr(TABLE, name)[2]) for name in ("a", "b", "s", "noise_weight"))
    end = slice(LONG - 1000, LONG)
    residual = branches[0, 0, end].double() - a * x[0, end].double() - b * v.detach()[0, end].double()
    expected = -weight * float(out.log_ratio.exp()) * b / (s * s * LONG) * residual
    torch.testing.assert_close(gradient[0, end].double(), expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("num_rows", [1, 2 * MANY])
def test_shapes_beyond_32_bits_on_meta_tensors(num_rows):
    """What torch.compile and the memory report see of such a batch."""
    latents = torch.empty(num_rows, LONG, device="meta", dtype=torch.bfloat16)
    seed, ids = (torch.empty(shape, device="meta", dtype=torch.int64) for shape in ((), (num_rows,)))
    noisy = (TABLE.coefficients("meta"), 2, 6, seed, ids)
    moved, branches, log_prob = torch.ops.tempflow_fast.branch_step(latents, latents, None, 1.0, *noisy)
    assert moved.shape == (num_rows, LONG)
    assert branches.shape == (num_rows, 6, LONG)
    assert log_prob.shape == (num_rows, 6)
