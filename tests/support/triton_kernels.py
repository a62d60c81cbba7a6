"""The Triton kernels in Triton's interpreter, beyond the tests of every body in test_ops.py; test_triton.py runs this.

A process has one body, so the results of the compiled CPU body come from the file that TEMPFLOW_TEST_NATIVE names.
"""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl
from tempflow_fast.kernels import density, launch, loss, sample
from tempflow_fast.kernels.noise import quad_words

from support.op_inputs import op_inputs
from support.tolerances import assert_near
from tempflow_fast import linear_sigmas, ops, step_table
from tempflow_fast.ops import bodies, noise, reference

TABLE = step_table(linear_sigmas(8, 3.0))
ROWS = TABLE.coefficients()
pytestmark = pytest.mark.usefixtures("poisoned")


def test_every_op_is_served_by_triton():
    assert {bodies.body(op, "cpu") for op in bodies.OPS} == {"triton"}


@triton.jit
def words_kernel(out, seed, trajectory_id, branch_step, quads: tl.constexpr):
    quad = tl.arange(0, quads)
    a, b, c, d = quad_words(tl.load(seed), tl.load(trajectory_id), branch_step, quad.to(tl.uint32))
    tl.store(out + 4 * quad, a.to(tl.int64))
    tl.store(out + 4 * quad + 1, b.to(tl.int64))
    tl.store(out + 4 * quad + 2, c.to(tl.int64))
    tl.store(out + 4 * quad + 3, d.to(tl.int64))


@pytest.mark.parametrize(("seed", "trajectory_id"), [(0, 0), (2**62 + 12345, 2**41 + 9), (2**32 - 1, 2**31)])
def test_noise_words_are_equal(seed, trajectory_id):
    step, branch, ids = 5, 7, torch.tensor([trajectory_id])
    out = torch.empty(256, dtype=torch.int64)
    words_kernel[(1,)](out, torch.tensor(seed), ids, branch | step << 16, 64)
    assert torch.equal(out, noise.words(ids, torch.tensor(seed), step, branch + 1, 256)[0, branch])


def test_samples_have_the_bits_of_the_compiled_body():
    if "TEMPFLOW_TEST_NATIVE" not in os.environ:
        pytest.skip("no compiled body with fma to compare with")
    cases = torch.load(os.environ["TEMPFLOW_TEST_NATIVE"])
    assert len(cases) == 3
    for case in cases:
        latents, velocity, uncond, steps = case["inputs"]
        seed, ids = torch.tensor(case["seed"]), case["ids"]
        guidance = {"velocity_uncond": uncond, "guidance_scale": 4.5}
        moved, branches, log_prob = ops.branch_step(latents, velocity, TABLE, 3, 3, seed, ids, **guidance)
        assert torch.equal(moved, case["moved"])
        assert torch.equal(branches, case["branches"])
        torch.testing.assert_close(log_prob, case["log_prob"], rtol=1e-6, atol=2e-6)
        assert torch.equal(ops.guided_velocity(velocity, uncond, 4.5), case["guided"])
        assert torch.equal(ops.initial_noise((latents.shape[1],), seed, ids), case["noise"])
        grad = torch.ones(latents.shape[0])
        back = torch.ops.tempflow_fast.log_prob_backward(grad, branches[:, 0], latents, velocity, ROWS, steps)
        assert_near("gradient", latents.dtype, back, case["backward"])


def loss_arguments(dtype: torch.dtype, rows: int, num_branches: int, numel: int) -> list:
    generator = torch.Generator().manual_seed(numel)

    def data(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    latents, velocity, ref = (data(rows, numel) for _ in range(3))
    old = (velocity.double() + 0.02 * data(rows, numel).double()).to(dtype)
    steps = torch.arange(rows) % 7
    mean = ROWS[steps, 1, None] * latents.double() + ROWS[steps, 2, None] * old.double()
    eps = torch.randn(rows, num_branches, numel, generator=generator)
    branches = (mean[:, None] + ROWS[steps, 3, None, None] * eps).to(dtype)
    advantages = torch.randn(rows, num_branches, generator=generator)
    return [velocity, None, latents, branches, old, ref, advantages, ROWS, steps, 1.0, 1e-3, 0.04, True]


@pytest.mark.parametrize(
    ("rows", "num_branches", "numel"),
    [(2, 1, 5), (1, 7, 2049), (loss.PAIRS + 1, 3, 9), (1, 1, 1024 * loss.PARTIALS + 3)],
    ids=["one branch", "odd branches", "many rows", "many blocks"],
)
def test_policy_loss_of_any_counts(rows, num_branches, numel):
    """K of one and not a multiple of GROUP, more log-ratios than PAIRS, more partial sums than PARTIALS."""
    arguments = loss_arguments(torch.float32, rows, num_branches, numel)
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    got = torch.ops.tempflow_fast.policy_loss(*arguments)
    kinds = ("statistic", "log_ratio", "statistic", "statistic", "gradient")
    for kind, value, want in zip(kinds, got, reference.policy_loss(*wide), strict=True):
        assert_near(kind, torch.float32, value, want)
    again = torch.ops.tempflow_fast.policy_loss(*arguments[:-1], False)
    assert all(torch.equal(a, b) for a, b in zip(again[:4], got, strict=False))
    assert again[4].shape == (0,)


def test_rows_of_an_unchanged_policy_are_read_once(monkeypatch):
    """Rows filled with NaN before the second launch change nothing, except where one element has changed."""

    def forgetful(kernel, *arguments, **constants):
        if kernel is loss.loss_gradient_kernel:
            for tensor in data:
                tensor.fill_(torch.nan)
        launch.launch(kernel, *arguments, **constants)

    arguments = loss_arguments(torch.bfloat16, 3, 5, 2049)
    arguments[4] = arguments[0].clone()
    want = torch.ops.tempflow_fast.policy_loss(*arguments)
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    assert_near("gradient", torch.float32, want[4], reference.policy_loss(*wide)[4])
    for row in (None, 1):
        copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        data = [copies[place] for place in (0, 2, 3, 4, 5)]
        if row is not None:
            copies[4][row, 2048] += 1
        with monkeypatch.context() as patch:
            patch.setattr(loss, "launch", forgetful)
            got = torch.ops.tempflow_fast.policy_loss(*copies)
        assert got[4].isnan().all(1).tolist() == [other == row for other in range(3)]
        kept = [other for other in range(3) if other != row]
        assert torch.equal(got[4][kept], want[4][kept])


def test_a_sample_that_is_no_number_spoils_its_row_of_an_unchanged_policy():
    arguments = loss_arguments(torch.float32, 3, 5, 1025)
    arguments[4], arguments[3][1, 4, 7] = arguments[0], torch.nan
    got = torch.ops.tempflow_fast.policy_loss(*arguments)
    assert got[1].isnan().nonzero().tolist() == [[1, 4]]
    assert got[4].isnan().all(1).tolist() == [False, True, False]


def test_log_densities_of_many_rows_and_blocks():
    """More rows than DENSITIES; more partial sums than PARTIALS."""
    for rows, numel in ((33, 5), (1, 1024 * 65)):
        generator = torch.Generator().manual_seed(rows)
        child, x, v = (torch.randn(rows, numel, generator=generator) for _ in range(3))
        steps = torch.arange(rows) % 7
        want = reference.log_prob(child.double(), x.double(), v.double(), ROWS, steps)
        assert_near("log_prob", torch.float32, ops.log_prob(child, x, v, TABLE, steps), want)


@pytest.mark.parametrize(("num_rows", "distance"), [(2, 2**31), (3, 2**30)], ids=["distance", "product"])
def test_rows_may_be_further_apart_than_32_bits_tell(tmp_path, num_rows, distance):
    """Neither the distance of rows nor its product with their number has to fit. The rows are in a file, of which only
    what is read takes memory."""
    with open(tmp_path / "rows", "wb") as file:
        file.truncate(2 * (2**31 + 2049))
    memory = torch.from_file(str(tmp_path / "rows"), size=2**31 + 2049, dtype=torch.bfloat16)
    latents, velocity = memory.as_strided((num_rows, 2049), (distance, 1)), torch.randn(num_rows, 2049).bfloat16()
    moved = torch.ops.tempflow_fast.euler_step(latents, velocity, None, 1.0, ROWS, 3)
    assert_near("latents", torch.bfloat16, moved, ROWS[3, 0] * velocity.double())


@pytest.mark.parametrize("ratio_norm", [False, True])
def test_branches_may_be_further_apart_than_32_bits_tell(tmp_path, ratio_norm):
    """Rows of branches, the branches of a row and the rows of latents, all beyond 2^31 elements from one another."""
    with open(tmp_path / "rows", "wb") as file:
        file.truncate(2 * (3 * 2**31 + 2049))
    memory = torch.from_file(str(tmp_path / "rows"), size=3 * 2**31 + 2049, dtype=torch.bfloat16)
    branches = memory.as_strided((2, 2, 2049), (2**32, 2**31, 1))
    far, table = memory.as_strided((2, 2049), (2**31, 1)), TABLE.with_ratio_norm() if ratio_norm else TABLE
    velocity, old = torch.randn(2, 2049).bfloat16(), torch.randn(2, 2049).bfloat16()
    rest = (None, torch.ones(2, 2), table.coefficients(), torch.tensor([3, 1]), 1.0, 1e-3, 0.0, True)
    got = torch.ops.tempflow_fast.policy_loss(velocity, None, far, branches, old, *rest)
    near, zeros = torch.zeros(2, 2, 2049).bfloat16(), torch.zeros(2, 2049).bfloat16()
    want = torch.ops.tempflow_fast.policy_loss(velocity, None, zeros, near, old, *rest)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    drawn = torch.ops.tempflow_fast.branch_step(far, velocity, None, 1.0, ROWS, 3, 2, torch.tensor(1), torch.arange(2))
    want = torch.ops.tempflow_fast.branch_step(zeros, velocity, None, 1.0, ROWS, 3, 2, torch.tensor(1), torch.arange(2))
    assert all(torch.equal(a, b) for a, b in zip(drawn, want, strict=True))


def test_one_launch_or_two_where_sums_of_a_row_meet(monkeypatch):
    launched = []

    def counted(*arguments, **constants):
        launched.append(arguments[0])
        launch.launch(*arguments, **constants)

    for module in (sample, density, loss):
        monkeypatch.setattr(module, "launch", counted)
    for name, arguments in op_inputs(torch.float32, numel=1025).items():
        launched.clear()
        getattr(torch.ops.tempflow_fast, name)(*arguments)
        assert len(launched) == (2 if name in ("branch_step", "log_prob", "policy_loss") else 1), name


def test_a_step_on_the_device_that_the_table_lacks_gives_nan():
    """The host does not read its value, which must not become an address."""
    arguments = loss_arguments(torch.float32, 2, 2, 9)
    velocity, latents, branches = arguments[0], arguments[2], arguments[3]
    for wrong in (-1, 8, 2**40):
        steps = torch.tensor([1, wrong])
        got = torch.ops.tempflow_fast.policy_loss(*arguments[:8], steps, *arguments[9:])
        log_ratio, gradient = got[1], got[4]
        assert got[0].isnan()
        assert log_ratio.isnan().all(1).tolist() == gradient.isnan().all(1).tolist() == [False, True]
        density = torch.ops.tempflow_fast.log_prob(branches[:, 0], latents, velocity, ROWS, steps)
        assert density.isnan().tolist() == [False, True]


@pytest.mark.parametrize("name", ["euler_step", "branch_step"])
def test_a_step_on_the_host_is_checked(name):
    x = torch.zeros(2, 3)
    rest = () if name == "euler_step" else (2, torch.tensor(0), torch.arange(2))
    with pytest.raises(IndexError, match=rf"{name}: step must be in 0..7, got 8"):
        getattr(torch.ops.tempflow_fast, name)(x, x, None, 1.0, ROWS, 8, *rest)


def test_arguments_that_no_kernel_can_read_are_refused():
    x = torch.zeros(3, 4)
    for velocity in (x.half(), x[:, :2], torch.zeros(4, 3).T):
        with pytest.raises(RuntimeError, match="guided_velocity: velocity_uncond must be"):
            torch.ops.tempflow_fast.guided_velocity(x, velocity, 2.0)


def test_the_rule_of_a_program():
    assert [launch.block_size(dtype) for dtype in (torch.float32, torch.bfloat16)] == [1024, 2048]
    assert [launch.blocks_of(numel, torch.float16) for numel in (1, 2048, 2049)] == [1, 1, 2]
