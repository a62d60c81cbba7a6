"""What the ops promise PyTorch and their callers: schemas, fakes, autograd, torch.compile, and errors that help."""

from __future__ import annotations

import re

import pytest
import torch
from support.op_inputs import IDS, NAMESPACES, ROWS, STEPS, TABLE, op_inputs

from tempflow_fast import linear_sigmas, ops, step_table
from tempflow_fast.ops.registration import namespace


@pytest.mark.parametrize("name", op_inputs(torch.float32))
@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_opcheck(namespace, name, dtype):
    op = getattr(getattr(torch.ops, namespace), name).default
    torch.library.opcheck(op, op_inputs(dtype)[name])


@pytest.mark.parametrize("guided", [False, True])
def test_gradcheck_in_float64(guided):
    v, u, x, branches, old, ref, advantages = (
        torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        for i, shape in enumerate([(3, 5), (3, 5), (3, 5), (3, 2, 5), (3, 5), (3, 5), (3, 2)])
    )
    old = v + 0.01 * old
    leaves = [v.requires_grad_(), *([u.requires_grad_()] if guided else [])]

    def loss(velocity, uncond=None):
        # Ratios are far outside this clip range and stay there, so the loss is smooth around the point.
        return ops.policy_loss(
            velocity, x, branches, old, advantages, TABLE, STEPS, clip_range=1e-4, velocity_ref=ref, beta=0.3,
            velocity_uncond=uncond, guidance_scale=2.5 if guided else 1.0,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradcheck(lambda velocity: ops.log_prob(branches[:, 0], x, velocity, TABLE, STEPS), leaves[0])


def iteration(latents, velocity, step):
    """A caller that uses every op, seen as one graph."""
    noise, acted = ops.initial_noise((2, 9), 1, IDS), velocity.detach()
    moved, branches, log_prob = ops.branch_step(latents + noise, acted, TABLE, step, 4, 7, IDS, acted, 2.0)
    moved = ops.euler_step(moved, acted, TABLE, step + 1)
    density = ops.log_prob(branches[:, 0], latents, velocity, TABLE, STEPS)
    old = ops.guided_velocity(acted, moved, 2.0)
    loss = ops.policy_loss(velocity, latents, branches, old, log_prob, TABLE, STEPS, velocity_ref=old, beta=0.1).loss
    return loss + density.sum(), moved


@pytest.mark.slow
def test_compile_fullgraph(body):
    latents, velocity = torch.randn(3, 2, 9), torch.randn(3, 2, 9, requires_grad=True)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(iteration, fullgraph=True, backend="aot_eager")
    for step in range(5):
        results = []
        for function in (iteration, compiled):
            loss, moved = function(latents, velocity, step)
            (gradient,) = torch.autograd.grad(loss, velocity)
            results.append((loss, moved, gradient))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    # One graph for the first step seen and one for all others: a graph per step would hit the recompile limit.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
@pytest.mark.skipif(" " in torch.__file__, reason="inductor's linker command breaks at a space in torch's path")
def test_compile_with_inductor():
    latents, velocity = torch.randn(3, 2, 9), torch.randn(3, 2, 9)
    compiled = torch.compile(lambda x, v: ops.euler_step(x * 2, v + 1, TABLE, 1) * 0.5, fullgraph=True)
    torch.testing.assert_close(compiled(latents, velocity), ops.euler_step(latents * 2, velocity + 1, TABLE, 1) * 0.5)


X, V, BRANCHES, ADVANTAGES = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 5, 3, 4), torch.zeros(2, 5)
ODE = step_table(linear_sigmas(6), "ode")


def euler(latents=X, velocity=V, table=TABLE, step=0, **options):
    return ops.euler_step(latents, velocity, table, step, **options)


def branch(latents=X, velocity=V, table=TABLE, step=0, k=2, seed=0, ids=(0, 1), **options):
    return ops.branch_step(latents, velocity, table, step, k, seed, ids, **options)


def loss(velocity=V, latents=X, branches=BRANCHES, old=V, advantages=ADVANTAGES, table=TABLE, steps=(0, 1), **options):
    return ops.policy_loss(velocity, latents, branches, old, advantages, table, steps, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: euler(velocity=V[:, :2]), "euler_step: velocity must be [2, 3, 4] like latents, got [2, 2, 4]"),
        (
            lambda: euler(velocity=V.half()),
            "euler_step: velocity must be torch.float32 like latents, got torch.float16",
        ),
        (lambda: euler(velocity=V.to("meta")), "euler_step: velocity must be on cpu like latents, got meta"),
        (
            lambda: euler(X.long(), V.long()),
            "euler_step: latents must be a float32, bfloat16, float16 or float64 tensor",
        ),
        (lambda: euler(X[0, 0], V[0, 0]), "euler_step: latents must be of 2 or more dimensions, got [4]"),
        (
            lambda: euler(X[:, :0], V[:, :0]),
            "euler_step: latents must be of at least one element per row, got [2, 0, 4]",
        ),
        (
            lambda: euler(X.mT, V.mT),
            "euler_step: latents must be contiguous within each row (call .contiguous()), got strides",
        ),
        (lambda: euler(step=6), "euler_step: step must be in 0..5, got 6"),
        (
            lambda: euler(guidance_scale=2.0),
            "euler_step: velocity_uncond must be given for guidance_scale 2.0, got None",
        ),
        (lambda: branch(table=ODE), "branch_step: step must be one where sampler 'ode' adds noise, got 0"),
        (lambda: branch(k=0), "branch_step: num_branches must be in 1..65536, got 0"),
        (lambda: branch(ids=(0,)), "branch_step: trajectory_ids must be [2], got [1]"),
        (lambda: branch(ids=torch.zeros(2)), "branch_step: trajectory_ids must be int64, got torch.float32"),
        (lambda: branch(seed=-1), "branch_step: seed must be in 0..2^63-1, got -1"),
        (
            lambda: branch(velocity_uncond=V[:1]),
            "branch_step: velocity_uncond must be [2, 3, 4] like latents, got [1, 3, 4]",
        ),
        (lambda: ops.initial_noise((), 0, [1]), "initial_noise: shape must be positive sizes, got []"),
        (lambda: ops.log_prob(X, X, V, TABLE, [0]), "log_prob: steps must be [2], one per row, got [1]"),
        (lambda: ops.log_prob(X, X, V, TABLE, [0, 7]), "log_prob: step must be in 0..5, got 7"),
        (lambda: loss(branches=BRANCHES[0]), "policy_loss: branches must be [2, K, 3, 4] like velocity, got [5, 3, 4]"),
        (
            lambda: loss(advantages=ADVANTAGES[:, :4]),
            "policy_loss: advantages must be [2, 5] like branches, got [2, 4]",
        ),
        (lambda: loss(steps=torch.tensor([0, -1])), "policy_loss: step must be in 0..5, got -1"),
        (lambda: loss(table=ODE), "policy_loss: step must be one where sampler 'ode' adds noise, got 0"),
        (lambda: loss(clip_range=0.0), "policy_loss: clip_range must be in (0, 1), got 0.0"),
        (lambda: euler(step=1.5), "euler_step: step must be an integer, got 1.5"),
        (lambda: euler(step=torch.tensor(1)), "euler_step: step must be an integer, got tensor(1)"),
        (lambda: euler(table=None), "euler_step: table must be a StepTable (see step_table), got <class 'NoneType'>"),
        (
            lambda: euler(velocity=None),
            "euler_step: velocity must be a float32, bfloat16, float16 or float64 tensor, got <class 'NoneType'>",
        ),
        (
            lambda: euler(velocity_uncond=V, guidance_scale=float("nan")),
            "euler_step: guidance_scale must be finite, got nan",
        ),
        (lambda: branch(k=2.0), "branch_step: num_branches must be an integer, got 2.0"),
        (lambda: branch(seed=0.5), "branch_step: seed must be an integer, got 0.5"),
        (lambda: branch(ids=(0.5, 1.5)), "branch_step: trajectory_ids must be an integer, got 0.5"),
        (lambda: branch(ids=(0, 2**63)), "branch_step: trajectory_ids must be integers of 64 bits, got"),
        (lambda: branch(ids=None), "branch_step: trajectory_ids must be a list of integers, got None"),
        (
            lambda: ops.guided_velocity(V, V, float("inf")),
            "guided_velocity: guidance_scale must be finite, got inf",
        ),
        (lambda: ops.initial_noise((2.5,), 0, [1]), "initial_noise: shape must be an integer, got 2.5"),
        (
            lambda: ops.initial_noise((2,), 0, [1], "tpu"),
            "initial_noise: device must be one that torch can use here, got 'tpu': ",
        ),
        (lambda: ops.log_prob(X, X, V, TABLE, [0, 0.5]), "log_prob: steps must be an integer, got 0.5"),
        (
            lambda: ops.log_prob(X, X, V, TABLE, torch.tensor([[0], [1]])),
            "log_prob: steps must be [2], one per row, got [2, 1]",
        ),
        (lambda: loss(old=None), "policy_loss: velocity_old must be a float32, bfloat16, float16 or float64 tensor"),
        (lambda: loss(branches=None), "policy_loss: branches must be a float32, bfloat16, float16 or float64 tensor"),
        (lambda: loss(advantages=None), "policy_loss: advantages must be a tensor, got <class 'NoneType'>"),
        (lambda: loss(clip_range="x"), "policy_loss: clip_range must be a number, got 'x'"),
        (lambda: loss(beta=float("inf"), velocity_ref=V), "policy_loss: beta must be finite, got inf"),
        (lambda: euler(X.to_sparse()), "euler_step: latents must be a dense tensor, got torch.sparse_coo"),
        (
            lambda: euler(velocity=torch.nested.nested_tensor(list(V))),
            "euler_step: velocity must be a dense tensor, got a nested tensor",
        ),
        (
            lambda: loss(advantages=ADVANTAGES.to_sparse()),
            "policy_loss: advantages must be a dense tensor, got torch.sparse_coo",
        ),
        (
            lambda: branch(ids=torch.zeros(2, dtype=torch.int64, device="meta")),
            "branch_step: trajectory_ids must be on cpu, got a meta tensor, which has no values",
        ),
        (
            lambda: ops.log_prob(X, X, V, TABLE, torch.zeros(2, dtype=torch.int64, device="meta")),
            "log_prob: steps must be on cpu, got a meta tensor, which has no values",
        ),
        (
            lambda: euler(X.new_empty(0, 2**62), X.new_empty(0, 2**62)),
            "euler_step: latents must be of at most 2^34 elements per row, got 4611686018427387904",
        ),
        (
            lambda: euler(X[:1].expand(2**50, 3, 4), X[:1].expand(2**50, 3, 4)),
            "euler_step: latents must be of at most 2^44 elements, got",
        ),
        (
            lambda: branch(ids=torch.zeros(1, dtype=torch.int64).expand(2**50)),
            "branch_step: trajectory_ids must be [2], got [1125899906842624]",
        ),
        (lambda: ops.initial_noise((2**35,), 0, [1]), "initial_noise: shape must be of at most 2^34 elements per row"),
        (lambda: euler(velocity_uncond=V, guidance_scale=1e39), "euler_step: guidance_scale must be finite in float32"),
        (lambda: loss(beta=10**400, velocity_ref=V), "policy_loss: beta must be finite, got 1000"),
        (lambda: loss(beta=0.1), "policy_loss: beta must be 0, or positive together with velocity_ref, got 0.1"),
    ],
)
def test_errors_name_op_argument_expected_and_got(body, call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


def test_zero_rows_of_any_length_give_a_loss_of_0_past_the_checks(body):
    """The product of these sizes is 2^64, which is 0 in 64 bits, and was divided by."""
    rows, none = torch.empty(0, 2**62), torch.empty(0)
    branches, advantages, steps = torch.empty(0, 1, 2**62), torch.empty(0, 1), torch.empty(0, dtype=torch.int64)
    op = getattr(torch.ops, namespace(torch.float32)).policy_loss
    got = op(rows, None, rows, branches, rows, None, advantages, ROWS, steps, 1.0, 1e-3, 0.0, False)
    assert got[0] == 0
    assert got[1].shape == (0, 1)
    assert torch.equal(got[4], none)


@pytest.mark.parametrize("name", ["euler_step", "branch_step", "log_prob", "policy_loss"])
def test_the_compiled_ops_guard_memory_when_called_past_the_checks(body, name):
    arguments = list(op_inputs(torch.float32)[name])
    index = next(i for i, a in enumerate(arguments) if a is ROWS)
    bad_step = 10_000 if name in ("euler_step", "branch_step") else torch.full_like(STEPS, 10_000)
    arguments[index + 1] = bad_step
    with pytest.raises((RuntimeError, IndexError)):
        getattr(getattr(torch.ops, namespace(torch.float32)), name)(*arguments)
