"""The differentiable and random steps of TempFlow-GRPO as PyTorch ops: schema, fake, autograd and public function.

A schema stands here once and is registered twice: in `tempflow_fast`, where compiled bodies take their devices and the
reference fills the gaps, and in `tempflow_fast_reference`, which is the reference alone and serves float64.
Latents of any shape are viewed as rows [N, D]; log-probabilities and the KL are means over the D elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import bodies, checks, reference
from .arguments import fail, finite, integer, integers, usable_device
from .schedule import StepTable

_libraries = [torch.library.Library(name, "DEF") for name in ("tempflow_fast", "tempflow_fast_reference")]


def _define(schema: str, fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    for library in _libraries:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
        library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)


def _differentiable(name: str, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Give an op its derivative: `save(ctx, inputs, output)` follows the forward, `backward(ctx, *grads)` is PyTorch's.

    What torch.library.register_autograd does, without its search of the schema in every call, which took longer than a
    small op itself.
    """
    for library in _libraries:
        op = getattr(getattr(torch.ops, library.ns), name).default
        library.impl(name, _autograd_kernel(op, save, backward), "Autograd")


def _autograd_kernel(
    op: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    def below(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = below(*inputs)
        save(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(f"Differentiable_{op.__name__}", (torch.autograd.Function,), methods)

    def kernel(*inputs: Any) -> Any:
        traced = torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
        return (function.apply if traced else below)(*inputs)

    return kernel


def _namespace(dtype: torch.dtype) -> str:
    return "tempflow_fast_reference" if dtype == torch.float64 else "tempflow_fast"


def _op(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    return getattr(getattr(torch.ops, _namespace(dtype)), name)


# ---- guided_velocity ------------------------------------------------------------------------------------------------

_define(
    "guided_velocity(Tensor velocity, Tensor velocity_uncond, float guidance_scale) -> Tensor",
    lambda velocity, velocity_uncond, guidance_scale: velocity.new_empty(velocity.shape),
)


@torch.no_grad()
def guided_velocity(velocity: Tensor, velocity_uncond: Tensor, guidance_scale: float) -> Tensor:
    """v_uncond + guidance_scale (v_cond - v_uncond), [N, *shape], without a gradient.

    Bit for bit the velocity that `policy_loss` forms from the same arguments: the `velocity_old` of a policy that is
    about to be trained with guidance.
    """
    v = checks.flat("guided_velocity", "velocity", velocity)
    u = checks.row_like("guided_velocity", "velocity_uncond", velocity_uncond, "velocity", velocity)
    scale = checks.guidance("guided_velocity", u, guidance_scale)
    return _op("guided_velocity", v.dtype)(v, u, scale).view(velocity.shape)


# ---- euler_step -----------------------------------------------------------------------------------------------------

_define(
    "euler_step(Tensor latents, Tensor velocity, Tensor? velocity_uncond, float guidance_scale, Tensor coefficients, "
    "SymInt step) -> Tensor",
    lambda latents, *_: latents.new_empty(latents.shape),
)


@torch.no_grad()
def euler_step(
    latents: Tensor,
    velocity: Tensor,
    table: StepTable,
    step: int,
    velocity_uncond: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """One ODE step, latents + dt v with v = v_uncond + guidance_scale (v_cond - v_uncond); no gradient.

    Args:
        latents, velocity, velocity_uncond: [N, *shape], one dtype and device.
        table: the schedule; `step` is one of its 0..T-1.

    Returns [N, *shape]. Raises ValueError naming the argument that does not fit.
    """
    x = checks.flat("euler_step", "latents", latents)
    v = checks.row_like("euler_step", "velocity", velocity, "latents", latents)
    u = checks.optional_row_like("euler_step", "velocity_uncond", velocity_uncond, "latents", latents)
    scale = checks.guidance("euler_step", u, guidance_scale)
    step = checks.step_index("euler_step", step, table)
    return _op("euler_step", x.dtype)(x, v, u, scale, table.coefficients(x.device), step).view(latents.shape)


# ---- branch_step ----------------------------------------------------------------------------------------------------


def _branch_step_fake(
    latents: Tensor, velocity: Tensor, uncond: Tensor | None, scale: float, table: Tensor, step: int, k: int, *_: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = latents.shape
    statistics = reference.compute_dtype(latents.dtype)
    return latents.new_empty(n, d), latents.new_empty(n, k, d), latents.new_empty(n, k, dtype=statistics)


_define(
    "branch_step(Tensor latents, Tensor velocity, Tensor? velocity_uncond, float guidance_scale, Tensor coefficients, "
    "SymInt step, SymInt num_branches, Tensor seed, Tensor trajectory_ids) -> (Tensor, Tensor, Tensor)",
    _branch_step_fake,
)


@torch.no_grad()
def branch_step(
    latents: Tensor,
    velocity: Tensor,
    table: StepTable,
    step: int,
    num_branches: int,
    seed: int | Tensor,
    trajectory_ids: Sequence[int] | Tensor,
    velocity_uncond: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Move the trunk by the ODE and draw K SDE branches from the state it leaves, in one pass; no gradient.

    A branch is a x + b v + s eps. Its noise depends on (seed, trajectory id, step, branch, element) alone, so any
    subset, order or split of the trajectories draws the same bits.

    Args:
        latents, velocity, velocity_uncond: [N, *shape], one dtype and device.
        step: a step of `table` with s > 0.
        num_branches: K, 1..65536.
        seed: 0..2^63-1, or an int64 tensor with one value.
        trajectory_ids: N global ids (int64), never positions in a batch.

    Returns latents_next [N, *shape], branches [N, K, *shape], and log_prob [N, K] of the branches as stored (mean over
    elements, float32 or better). Raises ValueError naming the argument that does not fit.
    """
    x = checks.flat("branch_step", "latents", latents)
    v = checks.row_like("branch_step", "velocity", velocity, "latents", latents)
    u = checks.optional_row_like("branch_step", "velocity_uncond", velocity_uncond, "latents", latents)
    scale = checks.guidance("branch_step", u, guidance_scale)
    step = checks.step_index("branch_step", step, table, noisy=True)
    num_branches = integer("branch_step", "num_branches", num_branches)
    if not 1 <= num_branches <= 0x10000:
        fail("branch_step", "num_branches", "in 1..65536", num_branches)
    ids = checks.ids("branch_step", trajectory_ids, x.shape[0], x.device)
    key = checks.seed_tensor("branch_step", seed, x.device)
    latents_next, branches, log_prob = _op("branch_step", x.dtype)(
        x, v, u, scale, table.coefficients(x.device), step, num_branches, key, ids
    )
    return latents_next.view(latents.shape), branches.unflatten(2, latents.shape[1:]), log_prob


# ---- initial_noise --------------------------------------------------------------------------------------------------

_define(
    "initial_noise(Tensor trajectory_ids, Tensor seed, SymInt numel) -> Tensor",
    lambda trajectory_ids, seed, numel: trajectory_ids.new_empty(trajectory_ids.shape[0], numel, dtype=torch.float32),
)


def initial_noise(
    shape: Sequence[int],
    seed: int | Tensor,
    trajectory_ids: Sequence[int] | Tensor,
    device: torch.device | str | None = None,
) -> Tensor:
    """Unit Gaussian starts of the trajectories, float32 [N, *shape], from the generator of `branch_step`.

    `device` defaults to that of `trajectory_ids`. Raises ValueError naming the argument that does not fit.
    """
    shape = tuple(integers("initial_noise", "shape", shape))
    if not shape or min(shape) < 1:
        fail("initial_noise", "shape", "positive sizes", list(shape))
    device = None if device is None else usable_device("initial_noise", device)
    ids = checks.ids("initial_noise", trajectory_ids, None, device)
    key = checks.seed_tensor("initial_noise", seed, ids.device)
    numel = torch.Size(shape).numel()
    return _op("initial_noise", torch.float32)(ids, key, numel).view(ids.shape[0], *shape)


# ---- log_prob -------------------------------------------------------------------------------------------------------

_define(
    "log_prob(Tensor latents_next, Tensor latents, Tensor velocity, Tensor coefficients, Tensor steps) -> Tensor",
    lambda latents_next, latents, velocity, coefficients, steps: latents.new_empty(
        latents.shape[0], dtype=reference.compute_dtype(latents.dtype)
    ),
)
_define(
    "log_prob_backward(Tensor grad, Tensor latents_next, Tensor latents, Tensor velocity, Tensor coefficients, "
    "Tensor steps) -> Tensor",
    lambda grad, latents_next, latents, velocity, coefficients, steps: velocity.new_empty(velocity.shape),
)


def _log_prob_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    return None, None, _op("log_prob_backward", saved[0].dtype)(grad.contiguous(), *saved), None, None


_differentiable("log_prob", lambda ctx, inputs, output: ctx.save_for_backward(*inputs), _log_prob_backward)


def log_prob(
    latents_next: Tensor, latents: Tensor, velocity: Tensor, table: StepTable, steps: Sequence[int] | Tensor
) -> Tensor:
    """Log-density of an SDE step, -|x' - a x - b v|^2 / (2 s^2 D) - log s - log(2 pi) / 2, a mean over the D elements.

    Args:
        latents_next, latents, velocity: [R, *shape], one dtype and device; v already guided.
        steps: [R], the step of each row, with s > 0.

    Returns [R], float32 or better, differentiable in `velocity`. Raises ValueError naming the argument that does not
    fit.
    """
    x = checks.flat("log_prob", "latents", latents).detach()
    child = checks.row_like("log_prob", "latents_next", latents_next, "latents", latents).detach()
    v = checks.row_like("log_prob", "velocity", velocity, "latents", latents)
    rows = checks.step_rows("log_prob", steps, table, x.shape[0], x.device)
    return _op("log_prob", x.dtype)(child, x, v, table.coefficients(x.device), rows)


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
    velocity: Tensor, uncond: Tensor | None, latents: Tensor, branches: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r, k, d = branches.shape
    shapes = ((), (r, k), (), (), (r, d) if rest[-1] else (0,))
    return tuple(velocity.new_empty(shape, dtype=reference.compute_dtype(velocity.dtype)) for shape in shapes)


_define(
    "policy_loss(Tensor velocity, Tensor? velocity_uncond, Tensor latents, Tensor branches, Tensor velocity_old, "
    "Tensor? velocity_ref, Tensor advantages, Tensor coefficients, Tensor steps, float guidance_scale, "
    "float clip_range, float beta, bool with_gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _policy_loss_fake,
)


def _policy_loss_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    velocity, uncond, guidance_scale = inputs[0], inputs[1], inputs[9]
    ctx.save_for_backward(output[4])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros as large as the gradient for outputs without one
    ctx.dtype, ctx.shares = velocity.dtype, (guidance_scale, 1 - guidance_scale) if uncond is not None else (1.0, None)


def _policy_loss_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 13
    # The incoming factor (a loss scale, for one) is applied in the wide dtype, before float16 could round to zero.
    (gradient,) = ctx.saved_tensors
    cond, uncond = (None if share is None else (gradient * (grad_loss * share)).to(ctx.dtype) for share in ctx.shares)
    return cond, uncond, *[None] * 11


_differentiable("policy_loss", _policy_loss_save, _policy_loss_backward)


def policy_loss(
    velocity: Tensor,
    latents: Tensor,
    branches: Tensor,
    velocity_old: Tensor,
    advantages: Tensor,
    table: StepTable,
    steps: Sequence[int] | Tensor,
    clip_range: float = 1e-4,
    velocity_ref: Tensor | None = None,
    beta: float = 0.0,
    velocity_uncond: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> PolicyLoss:
    """The loss of TempFlow-GRPO for R states with K branches each: one velocity serves all branches of its state.

    mean over R and K of noise_weight max(-A r, -A clip(r, 1 - c, 1 + c)), plus beta KL to the reference policy, with
    log r = mean over elements of b dv (2 (x' - m_old) - b dv) / (2 s^2), dv = v - v_old: exactly 0 where v is v_old.
    Clipping compares log r with log(1 -+ c).

    Args:
        velocity, latents: [R, *shape]; with guidance `velocity` is the conditional one.
        branches: [R, K, *shape], the samples taken from `latents`.
        velocity_old, velocity_ref: [R, *shape], already guided (see `guided_velocity`).
        advantages: [R, K].
        steps: [R], the step of each row, with s > 0.
        clip_range: c, in (0, 1). beta: not negative; positive needs `velocity_ref`.

    Returns a PolicyLoss, differentiable in `velocity` and `velocity_uncond`. No rows give a loss of 0. Raises
    ValueError naming the argument that does not fit.
    """
    op = "policy_loss"
    v = checks.flat(op, "velocity", velocity)
    x = checks.row_like(op, "latents", latents, "velocity", velocity).detach()
    old = checks.row_like(op, "velocity_old", velocity_old, "velocity", velocity).detach()
    ref = checks.optional_row_like(op, "velocity_ref", velocity_ref, "velocity", velocity)
    ref = None if ref is None else ref.detach()
    u = checks.optional_row_like(op, "velocity_uncond", velocity_uncond, "velocity", velocity)
    children = checks.branch_rows(op, branches, velocity).detach()
    weights = checks.advantage_rows(op, advantages, children).detach()
    scale = checks.guidance(op, u, guidance_scale)
    if not 0 < finite(op, "clip_range", clip_range) < 1:
        fail(op, "clip_range", "in (0, 1)", clip_range)
    if not finite(op, "beta", beta) >= 0 or (beta and ref is None):
        fail(op, "beta", "0, or positive together with velocity_ref", beta)
    rows = checks.step_rows(op, steps, table, x.shape[0], x.device)
    with_gradient = torch.is_grad_enabled() and (v.requires_grad or (u is not None and u.requires_grad))
    loss, log_ratio, clip_fraction, kl, _ = _op(op, v.dtype)(
        v, u, x, children, old, ref, weights, table.coefficients(x.device), rows, scale, clip_range, beta, with_gradient
    )
    return PolicyLoss(loss, log_ratio, clip_fraction, kl)


bodies.settle()
