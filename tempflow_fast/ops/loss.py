"""The ops of the update: the log-density of a branch and the clipped, weighted loss, with their derivatives.

A section per op: its schema and derivative, then the public function, which checks the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import fail
from . import checks, reference
from .registration import define, differentiable, registered
from .schedule import StepTable

# ---- log_prob -------------------------------------------------------------------------------------------------------

define(
    "log_prob(Tensor latents_next, Tensor latents, Tensor velocity, Tensor coefficients, Tensor steps) -> Tensor",
    lambda latents_next, latents, velocity, coefficients, steps: latents.new_empty(
        latents.shape[0], dtype=reference.compute_dtype(latents.dtype)
    ),
)
define(
    "log_prob_backward(Tensor grad, Tensor latents_next, Tensor latents, Tensor velocity, Tensor coefficients, "
    "Tensor steps) -> Tensor",
    lambda grad, latents_next, latents, velocity, coefficients, steps: velocity.new_empty(velocity.shape),
)


def _log_prob_save(ctx: Any, inputs: Mapping[str, Tensor], log_prob: Tensor) -> None:
    ctx.save_for_backward(*inputs.values())


def _log_prob_backward(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    inputs = ctx.saved_tensors
    # With create_graph=True PyTorch derives the gradient again, through the formulas of the reference.
    kept = torch.is_grad_enabled()
    backward = reference.log_prob_backward if kept else registered("log_prob_backward", inputs[0].dtype)
    return {"velocity": backward(grad.contiguous(), *inputs)}


differentiable("log_prob", _log_prob_save, _log_prob_backward)


def log_prob(
    latents_next: Tensor, latents: Tensor, velocity: Tensor, table: StepTable, steps: Sequence[int] | Tensor
) -> Tensor:
    """Log-density of an SDE step, -|x' - a x - b v|^2 / (2 s^2 D) - log s - log(2 pi) / 2, a mean over the D elements.

    Args:
        latents_next: x', [R, *shape].
        latents: x, shape, dtype and device of `latents_next`.
        velocity: v, already guided, shape, dtype and device of `latents_next`.
        table: the schedule and sampler.
        steps: [R], the step of each row, one that adds noise.

    Returns:
        [R], float32 or better, differentiable in `velocity`, in every mode of PyTorch and any number of times. States
        and samples are constants: one with a derivative of its own is refused.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    x = checks.constant("log_prob", "latents", checks.flat("log_prob", "latents", latents))
    x_next = checks.row_like("log_prob", "latents_next", latents_next, "latents", latents)
    checks.constant("log_prob", "latents_next", x_next)
    v = checks.row_like("log_prob", "velocity", velocity, "latents", latents)
    rows = checks.step_rows("log_prob", steps, table, x.shape[0], x.device)
    return registered("log_prob", x.dtype)(x_next, x, v, table.coefficients(x.device), rows)


# ---- policy_loss ----------------------------------------------------------------------------------------------------


class PolicyLoss(NamedTuple):
    """Result of `policy_loss`; all but `loss` are statistics without a gradient."""

    loss: Tensor
    """[]: differentiable in the velocities."""
    log_ratio: Tensor
    """[R, K]: log of new over old policy density, a mean over elements."""
    clip_fraction: Tensor
    """[]: share of the ratios outside 1 - clip_range .. 1 + clip_range."""
    kl: Tensor
    """[]: mean over rows of |m - m_ref|^2 / (2 s^2 D); 0 without velocity_ref."""


def _policy_loss_fake(
    velocity: Tensor, velocity_uncond: Tensor | None, latents: Tensor, branches: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    r, k, d = branches.shape
    shapes = ((), (r, k), (), (), (r, d) if rest[-1] else (0,))
    return tuple(velocity.new_empty(shape, dtype=reference.compute_dtype(velocity.dtype)) for shape in shapes)


define(
    "policy_loss(Tensor velocity, Tensor? velocity_uncond, Tensor latents, Tensor branches, Tensor velocity_old, "
    "Tensor? velocity_ref, Tensor advantages, Tensor coefficients, Tensor steps, float guidance_scale, "
    "float clip_range, float beta, bool with_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _policy_loss_fake,
)


class _NotTwice(torch.autograd.Function):
    """The gradient of the loss, as a function of the velocities whose derivative is not kept."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *velocities: Tensor | None) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "policy_loss: a second derivative through backward() would need all branches to be kept; "
            "torch.func.grad, jvp and hessian give it"
        )


def _policy_loss_save(ctx: Any, inputs: Mapping[str, Any], outputs: tuple[Tensor, ...]) -> None:
    _, *statistics, gradient = outputs
    ctx.save_for_backward(gradient, inputs["velocity"], inputs["velocity_uncond"])
    ctx.mark_non_differentiable(*statistics, gradient)
    ctx.set_materialize_grads(False)  # no zeros as large as the gradient for outputs without one
    scale, ctx.dtype = inputs["guidance_scale"], inputs["velocity"].dtype
    guided = inputs["velocity_uncond"] is not None
    ctx.shares = {"velocity": scale, "velocity_uncond": 1 - scale} if guided else {"velocity": 1.0}


def _policy_loss_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> dict[str, Tensor]:
    if grad_loss is None:
        return {}
    gradient, *velocities = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True
        gradient = _NotTwice.apply(gradient, *velocities)
    # The incoming factor (such as a loss scale) is applied in the wide dtype, before float16 could round to zero.
    return {name: (gradient * (grad_loss * share)).to(ctx.dtype) for name, share in ctx.shares.items()}


differentiable("policy_loss", _policy_loss_save, _policy_loss_backward)


def policy_loss(
    velocity: Tensor,
    latents: Tensor,
    branches: Tensor,
    velocity_old: Tensor,
    advantages: Tensor,
    table: StepTable,
    steps: Sequence[int] | Tensor,
    *,
    clip_range: float = 1e-4,
    velocity_ref: Tensor | None = None,
    beta: float = 0.0,
    velocity_uncond: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> PolicyLoss:
    """The loss of TempFlow-GRPO (arXiv 2508.04324) for R states with K branches each.

    It is the mean over R and K of noise_weight max(-A r, -A clip(r, 1 - c, 1 + c)), plus beta times the KL to the
    reference policy, with log r = mean over elements of b dv (2 (x' - m_old) - b dv) / (2 s^2), dv = v - v_old, which
    is exactly 0 where v is v_old. One velocity serves all branches of its state. Clipping compares log r with
    log(1 - c) and log(1 + c). With a table of `with_ratio_norm`, log r is the mean of b dv (x' - m_old) / s instead.

    Args:
        velocity: v, [R, *shape]; with guidance the conditional velocity.
        latents: the states x, shape, dtype and device of `velocity`.
        branches: x', [R, K, *shape], drawn from `latents`.
        velocity_old: of the policy that drew the branches, like `velocity`, already guided (see `guided_velocity`).
        advantages: A, [R, K].
        table: the schedule and sampler.
        steps: [R], the step of each row, one that adds noise.
        clip_range: c, in (0, 1).
        velocity_ref: of the reference policy, like `velocity`, already guided.
        beta: weight of the KL, not negative; a positive one needs `velocity_ref`.
        velocity_uncond: like `velocity`; v is then v_uncond + guidance_scale (v_cond - v_uncond).
        guidance_scale: finite; 1 without `velocity_uncond`.

    Returns:
        A PolicyLoss, differentiable in `velocity` and `velocity_uncond`, in every mode of PyTorch; second
        derivatives by torch.func alone. No rows give a loss of 0. The other tensors are constants: one with a
        derivative of its own is refused.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    op = "policy_loss"
    v = checks.flat(op, "velocity", velocity)
    x = checks.row_like(op, "latents", latents, "velocity", velocity)
    old = checks.row_like(op, "velocity_old", velocity_old, "velocity", velocity)
    ref = checks.optional_row_like(op, "velocity_ref", velocity_ref, "velocity", velocity)
    u = checks.optional_row_like(op, "velocity_uncond", velocity_uncond, "velocity", velocity)
    samples = checks.branch_rows(op, branches, velocity)
    weights = checks.advantage_rows(op, advantages, samples)
    constants = {"latents": x, "velocity_old": old, "velocity_ref": ref, "branches": samples, "advantages": weights}
    for name, tensor in constants.items():
        if tensor is not None:
            checks.constant(op, name, tensor)
    scale = checks.guidance(op, u, guidance_scale)
    if not 0 < checks.number(op, "clip_range", clip_range) < 1:
        fail(op, "clip_range", "in (0, 1)", clip_range)
    if not checks.number(op, "beta", beta) >= 0 or (beta and ref is None):
        fail(op, "beta", "0, or positive together with velocity_ref", beta)
    rows = checks.step_rows(op, steps, table, x.shape[0], x.device)
    with_gradient = torch.is_grad_enabled() and (v.requires_grad or (u is not None and u.requires_grad))
    loss, log_ratio, clip_fraction, kl, _ = registered(op, v.dtype)(
        v,
        u,
        x,
        samples,
        old,
        ref,
        weights,
        table.coefficients(x.device),
        rows,
        scale,
        float(clip_range),
        float(beta),
        with_gradient,
    )
    return PolicyLoss(loss, log_ratio, clip_fraction, kl)
