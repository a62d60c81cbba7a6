"""Every op in every mode of differentiation: the right derivative or a refusal, never a silent zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.op_inputs import IDS, STEPS, TABLE
from torch import Tensor, func
from torch.autograd import forward_ad

from tempflow_fast import ops


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Inputs:
    """Rows [3, 5] of one dtype; in `plain`, the textbook formula of each op, which PyTorch itself derives."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.x, self.next, self.v, self.u, self.old = (drawn(3, 5, dtype=dtype, seed=i) for i in range(5))
        self.old = self.v + 0.05 * self.old
        self.branches, self.advantages = drawn(3, 2, 5, dtype=dtype, seed=6), drawn(3, 2, dtype=dtype, seed=7)
        _, self.a, self.b, self.s, self.weight = TABLE.coefficients()[STEPS].to(dtype).unsqueeze(1).unbind(-1)

    def ops(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {
            "euler_step": lambda v: ops.euler_step(self.x, v, TABLE, 2, self.u, 3.0).square().sum(),
            "guided_velocity": lambda v: ops.guided_velocity(v, self.u, 3.0).square().sum(),
            "branch_step": lambda v: sum(t.square().sum() for t in ops.branch_step(self.x, v, TABLE, 2, 2, 7, IDS)[:2]),
            "log_prob": lambda v: ops.log_prob(self.next, self.x, v, TABLE, STEPS).sum(),
            "policy_loss": lambda v: self.loss(v).loss,
            "a sum": lambda v: (
                self.loss(v).loss + ops.log_prob(self.next, self.x, v**2, TABLE, STEPS).sum() + (v**3).sum()
            ),
        }

    def loss(self, v: Tensor) -> ops.PolicyLoss:
        return ops.policy_loss(
            v, self.x, self.branches, self.old, self.advantages, TABLE, STEPS, clip_range=0.02,
            velocity_ref=self.u, beta=0.3, velocity_uncond=self.u, guidance_scale=3.0,
        )  # fmt: skip

    def plain(self) -> dict[str, Callable[[Tensor], Tensor]]:
        dt, a, b, *_ = TABLE.coefficients()[2].tolist()
        noise = ops.branch_step(torch.zeros_like(self.x), torch.zeros_like(self.x), TABLE, 2, 2, 7, IDS)[1]

        def guided(v: Tensor) -> Tensor:
            return self.u + 3 * (v - self.u)

        def log_prob(samples: Tensor, v: Tensor) -> Tensor:
            return -((samples - self.a * self.x - self.b * v) ** 2).mean(1, keepdim=True) / (2 * self.s**2)

        def loss(v: Tensor) -> Tensor:
            ratio = torch.cat(
                [log_prob(branch, guided(v)) - log_prob(branch, self.old) for branch in self.branches.unbind(1)], 1
            ).exp()
            worse = torch.maximum(-self.advantages * ratio, -self.advantages * ratio.clamp(0.98, 1.02))
            kl = ((self.b * (guided(v) - self.u)) ** 2).mean(1, keepdim=True) / (2 * self.s**2)
            return (self.weight * worse).mean() + 0.3 * kl.mean()

        return {
            "euler_step": lambda v: (self.x + dt * guided(v)).square().sum(),
            "guided_velocity": lambda v: guided(v).square().sum(),
            "branch_step": lambda v: (
                ((self.x + v * dt) ** 2).sum() + (((a * self.x + b * v)[:, None] + noise) ** 2).sum()
            ),
            "log_prob": lambda v: log_prob(self.next, v).sum(),
            "policy_loss": loss,
            "a sum": lambda v: loss(v) + log_prob(self.next, v**2).sum() + (v**3).sum(),
        }


def forward_mode(f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(v, torch.cos(v)))).tangent


def gradient(f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    leaf = v.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


def twice(f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """The gradient of |gradient|^2, as a penalty of a training loop."""
    leaf = v.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum() + leaf.sum(), leaf)[0]


MODES = {
    "backward": gradient,
    "double backward": twice,
    "forward mode": forward_mode,
    "func.grad": lambda f, v: func.grad(f)(v),
    "func.jvp": lambda f, v: func.jvp(f, (v,), (torch.cos(v),))[1],
    "func.vjp": lambda f, v: func.vjp(f, v)[1](v.new_tensor(2.0))[0],
    "func.vmap of grad": lambda f, v: func.vmap(func.grad(f))(torch.stack([v, v + 0.01])),
    "func.jacrev": lambda f, v: func.jacrev(f)(v),
    "func.jacfwd": lambda f, v: func.jacfwd(f)(v),
    "func.hessian": lambda f, v: func.hessian(f)(v),
    "autograd.functional.hessian": lambda f, v: torch.autograd.functional.hessian(f, v),
    "the same, vectorised": lambda f, v: torch.autograd.functional.hessian(f, v, vectorize=True),
    "functional_call": lambda f, v: gradient(
        lambda w: f(func.functional_call(torch.nn.Linear(5, 5, bias=False, dtype=v.dtype), {"weight": w}, v[:, :5])),
        torch.eye(5, dtype=v.dtype),
    ),
}
# The loss keeps no branches for its backward, and so refuses these.
TWICE_BACKWARD = [MODES[name] for name in ("double backward", "autograd.functional.hessian", "the same, vectorised")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_each_op_has_the_derivative_of_its_formula(mode, dtype):
    inputs = Inputs(dtype)
    tolerance = 3e-4 if dtype == torch.float32 else 1e-9
    for name, formula in inputs.plain().items():
        if mode in TWICE_BACKWARD and name in ("policy_loss", "a sum"):
            with pytest.raises(RuntimeError, match="policy_loss: a second derivative through backward"):
                mode(inputs.ops()[name], inputs.v)
            continue
        got, want = mode(inputs.ops()[name], inputs.v), mode(formula, inputs.v)
        assert want.abs().sum() > 0 or "hessian" in str(mode), name
        torch.testing.assert_close(
            got, want, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_derivatives_reach_the_latents_of_a_step():
    inputs = Inputs(torch.float64)
    a = TABLE.a[2].item()
    moved = func.grad(lambda x: ops.euler_step(x, inputs.v, TABLE, 2).sum())(inputs.x)
    assert torch.equal(moved, torch.ones_like(moved))
    branched = gradient(lambda x: ops.branch_step(x, inputs.v, TABLE, 2, 2, 7, IDS)[1].sum(), inputs.x)
    torch.testing.assert_close(branched, torch.full_like(branched, 2 * a))


def test_a_ratio_that_overflows_and_is_clipped_has_no_nan_in_any_derivative():
    inputs = Inputs(torch.float32)
    inputs.old = inputs.v - 1e3
    inputs.advantages = torch.ones(3, 2)
    inputs.branches = inputs.branches + 1e3 * inputs.b[:, None].abs() * -1
    for mode in ("func.grad", "func.jvp", "func.hessian"):
        loss = lambda v: ops.policy_loss(v, inputs.x, inputs.branches, inputs.old, inputs.advantages, TABLE, STEPS).loss  # noqa: E731
        assert MODES[mode](loss, inputs.v).isfinite().all(), mode


@pytest.mark.parametrize("name", ["latents_next", "latents", "branches", "velocity_old", "velocity_ref", "advantages"])
@pytest.mark.parametrize("mode", ["backward", "forward mode", "func.grad", "func.jvp"])
def test_a_derivative_of_a_constant_is_refused(name, mode):
    inputs = Inputs(torch.float32)
    density = {"latents_next": inputs.next, "latents": inputs.x}
    loss = {
        "latents": inputs.x, "branches": inputs.branches, "velocity_old": inputs.old, "velocity_ref": inputs.u,
        "advantages": inputs.advantages,
    }  # fmt: skip

    def of_density(value: Tensor) -> Tensor:
        return ops.log_prob(velocity=inputs.v, table=TABLE, steps=STEPS, **(density | {name: value})).sum()

    def of_loss(value: Tensor) -> Tensor:
        return ops.policy_loss(inputs.v, table=TABLE, steps=STEPS, **(loss | {name: value})).loss

    for op, f, values in (("log_prob", of_density, density), ("policy_loss", of_loss, loss)):
        if name in values:
            with pytest.raises(
                ValueError, match=rf"^{op}: {name} must be a constant \(call \.detach\(\)\), got a tensor"
            ):
                MODES[mode](f, values[name])
            f(values[name].clone().requires_grad_().detach())


def test_without_a_graph_constants_may_require_grad():
    inputs = Inputs(torch.float32)
    with torch.no_grad():
        ops.log_prob(inputs.next.requires_grad_(), inputs.x.requires_grad_(), inputs.v, TABLE, STEPS)


def test_statistics_are_constants_in_every_mode():
    inputs = Inputs(torch.float32)
    for statistic in ("log_ratio", "clip_fraction", "kl"):
        assert not getattr(inputs.loss(inputs.v.clone().requires_grad_()), statistic).requires_grad
        assert not func.jvp(lambda v, s=statistic: getattr(inputs.loss(v), s), (inputs.v,), (inputs.v,))[1].any()


@pytest.mark.slow
def test_transforms_inside_a_compiled_function():
    torch.compiler.reset()
    all_ops = Inputs(torch.float32).ops().values()
    velocity = drawn(3, 5, dtype=torch.float32, seed=2)

    def f(v: Tensor) -> Tensor:
        return sum(op(v) for op in all_ops)

    for mode in ("func.grad", "func.jvp"):
        compiled = torch.compile(lambda v, mode=mode: MODES[mode](f, v), backend="aot_eager")
        torch.testing.assert_close(compiled(velocity), MODES[mode](f, velocity))


@pytest.mark.slow
def test_a_second_derivative_of_a_compiled_function_is_refused():
    torch.compiler.reset()
    inputs = Inputs(torch.float32)
    compiled = torch.compile(inputs.ops()["log_prob"], backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        twice(compiled, inputs.v)
