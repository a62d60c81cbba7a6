"""Every CUDA kernel, run on the CPU under the address and undefined-behaviour sanitizers, against the reference."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from random import Random

import pytest
import torch
from support.cuda_emulated import Emulator, Zeros, build, results
from support.marks import DTYPES, GUIDED
from support.op_bounds import compare
from support.op_cases import IDS, ROWS, SEED, STEPS, TABLE, Case, make_case, oracle
from support.op_draws import OPS, draw_call
from support.tolerances import assert_near
from torch import Tensor

from bench.gpu import harness
from tempflow_fast.ops import native, reference

COMPILER = shutil.which("g++")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not COMPILER, reason="no g++")]

# Odd and short; two blocks with a masked end; whole packs of every dtype in two blocks (fp32) or one (16 bits).
SIZES = pytest.mark.parametrize("numel", [3, 2051, 2048])
NATIVE = torch.ops.tempflow_fast
KEY = torch.tensor(SEED + 2**40)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "emulated"
    build(COMPILER, path, has_fma=native.cpu_isa() in ("avx2", "avx512"))
    return path


@pytest.fixture(scope="module", params=[(), ("backwards",)], ids=["forwards", "backwards"])
def cuda(request, program) -> Iterator[Emulator]:
    emulator = Emulator(program, *request.param)
    yield emulator
    emulator.close()


def assert_same(got: Tensor, want: Tensor) -> None:
    """Equal bits if this machine has fma and the compiled CPU bodies; otherwise the last bit may differ."""
    if native.cpu_isa() in ("avx2", "avx512"):
        assert torch.equal(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=2**-7 if want.dtype == torch.bfloat16 else 2**-10, atol=1e-5)


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


@DTYPES
@SIZES
@GUIDED
def test_moves_and_branches(cuda, dtype, numel, guided):
    case, k = make_case(dtype, numel, guided), 1 if guided else 3
    state = (case.latents, case.velocity, case.uncond, case.scale, ROWS, 3)
    moved, branches, log_prob = cuda.branch_step(*state, k, KEY, IDS)
    want_moved, want_branches, _ = reference.branch_step(*wide(*state[:3]), case.scale, ROWS, 3, k, KEY, IDS)
    assert_near("latents", dtype, moved, want_moved)
    assert_near("latents", dtype, branches, want_branches)
    velocity = case.velocity.double() if case.uncond is None else reference._guided(*wide(*state[1:3]), case.scale)
    for branch in range(k):  # the density is that of the branch as it is stored
        steps = torch.full_like(STEPS, 3)
        want = reference.log_prob(branches[:, branch].double(), case.latents.double(), velocity, ROWS, steps)
        assert_near("log_prob", dtype, log_prob[:, branch], want)
    assert torch.equal(cuda.euler_step(*state), moved)
    for got, want in zip((moved, branches), NATIVE.branch_step(*state, k, KEY, IDS), strict=False):
        assert_same(got, want)
    if guided:
        assert_same(cuda.guided_velocity(*state[1:4]), NATIVE.guided_velocity(*state[1:4]))


@pytest.mark.parametrize("op", OPS)
def test_drawn_calls(cuda, op):
    """Any schedule, layout, size and value, as in test_properties.py."""
    for seed in range(40):
        call = draw_call(Random(seed), op)
        if call.op == "initial_noise" or len(call.arguments["velocity"]):
            compare(call, results(cuda, call))


def test_initial_noise(cuda):
    for numel in (5, 1028):
        got = cuda.initial_noise(IDS, KEY, numel)
        assert_same(got, NATIVE.initial_noise(IDS, KEY, numel))
        assert_near("latents", torch.float32, got, reference.initial_noise(IDS, KEY, numel))


@DTYPES
@SIZES
def test_log_prob(cuda, dtype, numel):
    case = make_case(dtype, numel, guided=False)
    inputs = (case.branches[:, 1], case.latents, case.velocity)
    want = wide(*inputs)
    assert_near("log_prob", dtype, cuda.log_prob(*inputs, ROWS, STEPS), reference.log_prob(*want, ROWS, STEPS))
    grad = torch.randn(5)
    got = cuda.log_prob_backward(grad, *inputs, ROWS, STEPS)
    assert_near("gradient", dtype, got, reference.log_prob_backward(grad.double(), *want, ROWS, STEPS))
    assert_same(got, NATIVE.log_prob_backward(grad, *inputs, ROWS, STEPS))


def loss_inputs(case: Case, beta: float = 0.04, *, with_ref: bool = True) -> tuple:
    ref = case.velocity_ref if with_ref else None
    tensors = (case.velocity, case.uncond, case.latents, case.branches, case.velocity_old, ref, case.advantages)
    return *tensors, ROWS, STEPS[: len(case.latents)], case.scale, 1e-3, beta


def assert_policy_loss(cuda: Emulator, case: Case) -> None:
    """Every output of the loss is close to the oracle's, and the statistics are the same without a gradient."""
    dtype = case.velocity.dtype
    loss, log_ratio, clip_fraction, kl, gradient = cuda.policy_loss(*loss_inputs(case), True)
    want = oracle(case, 1e-3, 0.04)
    assert_near("statistic", dtype, loss, want[0])
    assert_near("log_ratio", dtype, log_ratio, want[1])
    assert_near("statistic", dtype, clip_fraction, want[2])
    assert_near("statistic", dtype, kl, want[3])
    assert_near("gradient", torch.float32, gradient, want[4])
    alone = cuda.policy_loss(*loss_inputs(case), False)
    assert all(torch.equal(a, b) for a, b in zip(alone[:4], (loss, log_ratio, clip_fraction, kl), strict=True))


@DTYPES
@SIZES
@GUIDED
def test_policy_loss(cuda, dtype, numel, guided):
    assert_policy_loss(cuda, make_case(dtype, numel, guided))


def unchanged(cuda: Emulator, case: Case) -> Case:
    """The case with the velocity of the policy that acted."""
    guided = case.velocity if case.uncond is None else cuda.guided_velocity(case.velocity, case.uncond, case.scale)
    return case._replace(velocity_old=guided.clone())


@DTYPES
@GUIDED
def test_policy_loss_where_a_policy_has_changed_in_part(cuda, dtype, guided):
    """Rows that have changed nowhere, in one element of the second block, or everywhere except in that block."""
    case = make_case(dtype, 2051, guided)
    old = unchanged(cuda, case).velocity_old
    old[1, 2050], old[2, :2048] = case.velocity_old[1, 2050] + 1, case.velocity_old[2, :2048]
    assert_policy_loss(cuda, case._replace(velocity_old=old))
    assert_policy_loss(cuda, unchanged(cuda, case))


@DTYPES
@GUIDED
def test_rows_of_an_unchanged_policy_are_read_once(program, dtype, guided):
    """If the rows are NaN before the second launch, unchanged rows keep their results and changed ones do not."""
    cuda, forgetful = Emulator(program), Emulator(program, "forgetful")
    case = unchanged(cuda, make_case(dtype, 2051, guided))
    got, want = forgetful.policy_loss(*loss_inputs(case), True), cuda.policy_loss(*loss_inputs(case), True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    case.velocity_old[2, 2050] += 1
    gradient = forgetful.policy_loss(*loss_inputs(case), True)[4]
    assert gradient.isnan().all(1).tolist() == [False, False, True, False, False]
    assert torch.equal(gradient[3], want[4][3])
    cuda.close()
    forgetful.close()


def test_a_sample_that_is_no_number_spoils_its_row_of_an_unchanged_policy(cuda):
    case = unchanged(cuda, make_case(torch.float32, 2051, guided=False))
    case.branches[3, 1, 7] = torch.nan
    _, log_ratio, _, _, gradient = cuda.policy_loss(*loss_inputs(case), True)
    assert log_ratio.isnan().nonzero().tolist() == [[3, 1]]
    assert gradient.isnan().all(1).tolist() == [False, False, False, True, False]


# More rows than a warp has lanes; more branches than fit in shared memory at once.
@pytest.mark.parametrize(("rows", "k"), [(33, 1), (2, 35)])
def test_policy_loss_of_many_rows_or_branches_without_reference(cuda, rows, k):
    case, generator = make_case(torch.bfloat16, 24, guided=False), torch.Generator().manual_seed(1)
    velocity, latents, old = (t[:1].expand(rows, -1) for t in (case.velocity, case.latents, case.velocity_old))
    branches = case.branches[:1, :1] + 0.1 * torch.randn(rows, k, 24, generator=generator).bfloat16()
    advantages, steps = torch.randn(rows, k, generator=generator), torch.arange(rows) % 7
    inputs = (velocity, None, latents, branches, old, None, advantages, ROWS, steps, 1.0, 1e-4, 0.0, True)
    got, want = cuda.policy_loss(*inputs), NATIVE.policy_loss(*inputs)
    for kind, a, b in zip(("statistic", "log_ratio", "statistic", "statistic", "gradient"), got, want, strict=True):
        assert_near(kind, torch.float32, a, b.double())


def test_an_unchanged_policy_has_ratio_one(cuda):
    case = make_case(torch.bfloat16, 2048, guided=True)
    old = cuda.guided_velocity(case.velocity, case.uncond, case.scale)
    got = cuda.policy_loss(*loss_inputs(case._replace(velocity_old=old), 0.0, with_ref=False), True)
    assert (got[1] == 0).all()
    assert (got[2], got[3]) == (0, 0)


@DTYPES
def test_rows_may_stand_anywhere(cuda, dtype):
    """Rows with gaps of whole packs, a repeated row, and unaligned rows give the bits of contiguous copies."""
    buffer = torch.randn(4, 3, 48).to(dtype)
    latents, velocity, uncond = buffer[:, 1, 16:], buffer[:1, 0, :32].expand(4, 32), buffer[:, 2, 3:35]
    branches, table_steps = buffer[:, :2, 16:], STEPS[:4]
    args = (velocity, uncond, latents, branches, latents, uncond, torch.randn(4, 2), ROWS, table_steps, 2.0, 1e-3, 0.1)
    copies = [a.contiguous() if isinstance(a, Tensor) else a for a in args]
    for got, want in zip(cuda.policy_loss(*args, True), cuda.policy_loss(*copies, True), strict=True):
        assert torch.equal(got, want)
    state = [latents, velocity, uncond]
    want = cuda.branch_step(*(t.contiguous() for t in state), 2.0, ROWS, 2, 2, KEY, IDS[:4])
    got = cuda.branch_step(*state, 2.0, ROWS, 2, 2, KEY, IDS[:4])
    alone = cuda.branch_step(*(t[3:] for t in state), 2.0, ROWS, 2, 2, KEY, IDS[3:4])
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(a, b[3:]) for a, b in zip(alone, want, strict=True))


def test_rows_may_be_further_apart_than_32_bits_tell(cuda):
    velocity = torch.randn(2, 2048).bfloat16()
    moved = cuda.euler_step(Zeros(2, 2**31 + 2048), velocity, None, 1.0, ROWS, 3)
    assert_same(moved, NATIVE.euler_step(torch.zeros_like(velocity), velocity, None, 1.0, ROWS, 3))


def test_the_loss_reads_rows_further_apart_than_32_bits_tell(cuda):
    case = make_case(torch.bfloat16, 2048, guided=False)
    inputs = list(loss_inputs(case))
    inputs[2] = torch.zeros_like(case.latents)
    want = NATIVE.policy_loss(*inputs, True)
    inputs[2] = Zeros(len(case.latents), 2**31 + 2048)
    for kind, a, b in zip(("statistic", "log_ratio"), cuda.policy_loss(*inputs, True), want[:2], strict=False):
        assert_near(kind, torch.float32, a, b.double())


@DTYPES
@GUIDED
@pytest.mark.parametrize("has_changed", [True, False])
def test_policy_loss_with_the_normalised_ratio(cuda, dtype, guided, has_changed):
    """Against the reference, which test_ratio_norm.py compares with the formula."""
    case, table = make_case(dtype, 2051, guided), TABLE.with_ratio_norm().coefficients()
    case = case if has_changed else unchanged(cuda, case)
    got = cuda.policy_loss(*loss_inputs(case)[:7], table, *loss_inputs(case)[8:], True)
    guided_velocity = case.velocity if case.uncond is None else NATIVE.guided_velocity(*case[1:3], case.scale)
    tensors = wide(guided_velocity, None, *case[:1], *case[3:6], case.advantages)
    want = reference.policy_loss(*tensors, table, STEPS, 1.0, 1e-3, 0.04, True)
    for kind, a, b in zip(("statistic", "log_ratio", "statistic", "statistic", "gradient"), got, want, strict=True):
        assert_near(kind, torch.float32 if kind == "gradient" else dtype, a, b)
    assert has_changed or bool((got[1] == 0).all())


@DTYPES
def test_rows_may_begin_on_a_pack_and_lose_it(cuda, dtype):
    """The first row is aligned and the next is not: first rows of latents, then only of branches."""
    loose, branches = torch.randn(4, 33).to(dtype)[:, :32], torch.randn(4, 2, 33).to(dtype)[..., :32]
    velocity, old = torch.randn(2, 4, 32).to(dtype)
    state = (velocity, None, 1.0, ROWS, 2)
    assert torch.equal(cuda.euler_step(loose, *state), cuda.euler_step(loose.contiguous(), *state))
    rest = (old, None, torch.randn(4, 2), ROWS, STEPS[:4], 1.0, 1e-3, 0.0, True)
    got = cuda.policy_loss(velocity, None, old, branches, *rest)
    want = cuda.policy_loss(velocity, None, old, branches.contiguous(), *rest)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_more_blocks_than_a_launch_has_are_refused(cuda):
    one = torch.zeros(1)
    with pytest.raises(AssertionError, match="more elements than one launch can cover"):
        cuda.launch("guided_velocity", torch.float32, one, 0, 0, one, 0, 0, 2.0, one.clone(), 2**31, 1)
    assert cuda.num_launches == 0


def test_one_launch_or_two_where_sums_of_a_row_meet(cuda):
    case = make_case(torch.float32, 2051, guided=True)
    state = (case.latents, case.velocity, case.uncond, case.scale, ROWS, 3)
    inputs = (case.branches[:, 1], case.latents, case.velocity, ROWS, STEPS)
    calls = {
        "guided_velocity": state[1:4],
        "euler_step": state,
        "branch_step": (*state, 3, KEY, IDS),
        "initial_noise": (IDS, KEY, 2051),
        "log_prob": inputs,
        "log_prob_backward": (torch.ones(5), *inputs),
        "policy_loss": (*loss_inputs(case), True),
    }
    for name, arguments in calls.items():
        getattr(cuda, name)(*arguments)
        assert cuda.num_launches == (2 if name in ("branch_step", "log_prob", "policy_loss") else 1), name


def test_results_repeat_in_any_order_of_blocks(program):
    case, results = make_case(torch.bfloat16, 4100, guided=True), []
    for options in ((), ("backwards",)):
        cuda = Emulator(program, *options)
        state = (case.latents, case.velocity, case.uncond, case.scale, ROWS, 3)
        density = cuda.log_prob(case.branches[:, 1], case.latents, case.velocity, ROWS, STEPS)
        results.append([*cuda.branch_step(*state, 2, KEY, IDS), density, *cuda.policy_loss(*loss_inputs(case), True)])
        cuda.close()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_program_may_run_the_kernels(program):
    """As compute-sanitizer does on a GPU; what it says when it ends counts."""
    assert harness.compare_calls(["env", str(program)], num_draws=2) == 12
    with pytest.raises(AssertionError, match="ended with status 9"):
        harness.compare_calls(["sh", "-c", f"'{program}'; exit 9"], num_draws=1)


def test_no_rows(cuda):
    case = make_case(torch.float32, 6, guided=True, num_rows=0)
    state = (case.latents, case.velocity, case.uncond, case.scale, ROWS, 1)
    assert cuda.euler_step(*state).shape == (0, 6)
    assert [t.shape for t in cuda.branch_step(*state, 2, KEY, IDS[:0])] == [(0, 6), (0, 2, 6), (0, 2)]
    assert cuda.log_prob(*case[:2], case.velocity, ROWS, STEPS[:0]).shape == (0,)
    assert cuda.policy_loss(*loss_inputs(case), True)[4].shape == (0, 6)


def test_no_branches(cuda):
    case = make_case(torch.float32, 6, guided=False)
    empty = case._replace(branches=case.branches[:, :0].contiguous(), advantages=case.advantages[:, :0].contiguous())
    loss, log_ratio, clip_fraction, kl, gradient = cuda.policy_loss(*loss_inputs(empty), True)
    want = NATIVE.policy_loss(*loss_inputs(empty), True)
    assert log_ratio.shape == (5, 0)
    assert clip_fraction == 0
    torch.testing.assert_close((loss, kl, gradient), (want[0], want[3], want[4]))


def test_a_step_outside_of_the_table_makes_nan_and_touches_nothing_else(cuda):
    case, steps = make_case(torch.float32, 7, guided=False), torch.tensor([2, -1, 8, 10**12, 3])
    outside = torch.tensor([False, True, True, True, False])
    inputs = (case.branches[:, 0].contiguous(), case.latents, case.velocity, ROWS, steps)
    assert torch.equal(cuda.log_prob(*inputs).isnan(), outside)
    assert torch.equal(cuda.log_prob_backward(torch.ones(5), *inputs).isnan().all(1), outside)
    arguments = list(loss_inputs(case))
    arguments[8] = steps
    loss, log_ratio, _, _, gradient = cuda.policy_loss(*arguments, True)
    assert loss.isnan()
    assert torch.equal(log_ratio.isnan().all(1), outside)
    assert torch.equal(gradient.isnan().all(1), outside)
