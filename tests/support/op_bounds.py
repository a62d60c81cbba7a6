"""What a call of an op must give: the float64 reference, and how far float32 arithmetic may be from it, elementwise.

The bounds follow the formulas: each product and sum may err by a few units in its last place, relative to the sizes of
its terms, so that they hold for values and noise of any scale. Where float32 may overflow, any result is accepted.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from support.op_draws import Call
from tempflow_fast import ops
from tempflow_fast.ops import noise, reference

UNIT = 2.0**-22  # a few roundings of float32
TINY = 1e-37  # float32 has no normal numbers below
SUBNORMAL = 1e-44  # a few times the distance of those that there are
STORED = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 0.0}
LEAST = {torch.float32: 1e-44, torch.bfloat16: 1e-40, torch.float16: 6e-8, torch.float64: 0.0}


class Bounded(NamedTuple):
    """A result in float64, and the largest error of each element."""

    want: Tensor
    error: Tensor


def results(call: Call) -> dict[str, Tensor]:
    """Every output of the public function, and the gradients of those that training needs."""
    arguments = dict(call.arguments)
    names = ("velocity", "velocity_uncond") if call.op in ("log_prob", "policy_loss") else ()
    tensors = {name: arguments[name] for name in names if isinstance(arguments.get(name), Tensor)}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items() if tensor.dtype in STORED}
    got = getattr(ops, call.op)(**(arguments | leaves))
    outputs = (
        got._asdict()
        if isinstance(got, ops.PolicyLoss)
        else dict(enumerate(got))
        if isinstance(got, tuple)
        else {0: got}
    )
    if leaves:
        outputs |= dict(
            zip(
                ("gradient", "uncond_gradient"),
                torch.autograd.grad(_first(outputs).sum(), [*leaves.values()]),
                strict=False,
            )
        )
    return {str(name): value.detach() for name, value in outputs.items()}


def _first(outputs: dict[Any, Tensor]) -> Tensor:
    return next(iter(outputs.values()))


def bounds(call: Call, got: dict[str, Tensor]) -> dict[str, Bounded]:
    """What `results` must be for a call. Statistics that depend on which ratios are clipped are left out where that
    is within the error of the ratios.

    Args:
        call: the call.
        got: its results: densities are those of samples as they were stored.
    """
    return {"policy_loss": _loss, "log_prob": _log_prob, "branch_step": _branch, "initial_noise": _noise}.get(
        call.op, _move
    )(call.arguments, got)


def check(call: Call) -> None:
    """Runs a call and compares all its results with the reference."""
    compare(call, results(call))


def compare(call: Call, got: dict[str, Tensor]) -> None:
    """Compares the results of a call with the reference.

    Raises:
        AssertionError: the first wrong element.
    """
    for name, (want, error) in bounds(call, got).items():
        assert got[name].shape == want.shape, f"{call.op} {name}: {got[name].shape}, expected {want.shape}"
        wrong = ~_near(got[name], want, error)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{call.op}: {name}{list(at)} is {got[name][at].item()!r}, expected {want[at].item()!r} "
                f"within {error[at].item():.3g}; {int(wrong.sum())} of {wrong.numel()} elements are wrong"
            )


def _near(got: Tensor, want: Tensor, error: Tensor) -> Tensor:
    dtype, wide = got.dtype, got.double()
    error = error + STORED[dtype] * want.abs() + LEAST[dtype]
    largest = torch.finfo(dtype).max
    known = want.isfinite() & (error.isfinite() & (error < largest / 16))
    overflows = want.abs() + error > largest * (1 - 2.0**-8)
    special = ~want.isfinite() & ~wide.isfinite()
    unknown = want.isfinite() & ~known
    return special | unknown | (known & ((wide - want).abs() <= error)) | (known & overflows & ~wide.isfinite())


def _rows(arguments: dict[str, Any], name: str) -> Tensor:
    return arguments[name].detach().double().flatten(1)


def _guided(arguments: dict[str, Any]) -> Bounded:
    v = _rows(arguments, "velocity")
    if arguments.get("velocity_uncond") is None:
        return Bounded(v, torch.zeros_like(v))
    u, scale = _rows(arguments, "velocity_uncond"), arguments.get("guidance_scale", 1.0)
    return Bounded(u + scale * (v - u), UNIT * (u.abs() + abs(scale) * (v.abs() + u.abs())) + TINY)


def _move(arguments: dict[str, Any], got: dict[str, Tensor]) -> dict[str, Bounded]:
    v, error = _guided(arguments)
    shape = got["0"].shape
    if "table" in arguments:
        dt, x = arguments["table"].dt[arguments["step"]], _rows(arguments, "latents")
        v, error = x + dt * v, UNIT * (x.abs() + (dt * v).abs()) + dt.abs() * error + TINY
    return {"0": Bounded(v.view(shape), error.view(shape))}


def _noise(arguments: dict[str, Any], got: dict[str, Tensor]) -> dict[str, Bounded]:
    ids = torch.as_tensor(arguments["trajectory_ids"], dtype=torch.int64)
    want = reference.initial_noise(ids, torch.as_tensor(arguments["seed"]), math.prod(arguments["shape"])).double()
    return {"0": Bounded(want.view(got["0"].shape), 4e-6 + 1e-6 * want.abs().view(got["0"].shape))}


def _branch(arguments: dict[str, Any], got: dict[str, Tensor]) -> dict[str, Bounded]:
    (v, v_error), x = _guided(arguments), _rows(arguments, "latents")
    _, a, b, s, _ = arguments["table"].coefficients()[arguments["step"]].tolist()
    mean = a * x + b * v
    error = (UNIT * ((a * x).abs() + (b * v).abs()) + abs(b) * v_error + TINY)[:, None]
    ids, seed = torch.as_tensor(arguments["trajectory_ids"], dtype=torch.int64), torch.as_tensor(arguments["seed"])
    eps = noise.normals(ids, seed, arguments["step"], arguments["num_branches"], x.shape[1])
    branches = mean[:, None] + s * eps
    z, z_error = eps, 4e-6 + 1e-6 * eps.abs()
    if got["1"].dtype in (torch.bfloat16, torch.float16):
        z, z_error = (
            (got["1"].double().flatten(2) - mean[:, None]) / s,
            error / s + UNIT * got["1"].double().flatten(2).abs() / s,
        )
    shape = got["1"].shape
    return _move(arguments, got) | {
        "1": Bounded(branches.view(shape), (error + s * (4e-6 + 2e-6 * eps.abs())).expand_as(branches).reshape(shape)),
        "2": _density(z, z_error, s),
    }


def _density(z: Tensor, z_error: Tensor, s: float | Tensor) -> Bounded:
    log_s = torch.as_tensor(s, dtype=torch.float64).log()
    want = -0.5 * z.square().mean(-1) - log_s - reference.HALF_LOG_TWO_PI
    error = (z.abs() * z_error + z_error**2).mean(-1) + 1e-5 * z.square().mean(-1) + UNIT * (log_s.abs() + 1)
    return Bounded(want, error.where(z.square().sum(-1) < 1e37, torch.inf))


def _scalars(arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    steps = torch.as_tensor(arguments["steps"], dtype=torch.int64)
    return arguments["table"].coefficients()[steps].unsqueeze(1).unbind(-1)


def _log_prob(arguments: dict[str, Any], got: dict[str, Tensor]) -> dict[str, Bounded]:
    following, x, v = (_rows(arguments, name) for name in ("latents_next", "latents", "velocity"))
    _, a, b, s, _ = _scalars(arguments)
    residual = following - a * x - b * v
    error = UNIT * (following.abs() + (a * x).abs() + (b * v).abs()) + TINY
    density = _density(residual / s, error / s, s.squeeze(1))
    density = Bounded(density.want, density.error.where(residual.square().sum(-1) < 1e37, torch.inf))
    factor = b / (s**2 * x.shape[1])
    gradient = Bounded(factor * residual, factor.abs() * (error + 4 * UNIT * residual.abs()) + TINY)
    shape = got["gradient"].shape
    return {"0": density, "gradient": Bounded(*(each.view(shape) for each in gradient))}


def _loss(arguments: dict[str, Any], got: dict[str, Tensor]) -> dict[str, Bounded]:
    guided, scale = arguments.get("velocity_uncond") is not None, arguments.get("guidance_scale", 1.0)
    v = arguments["velocity"].detach()
    v = ops.guided_velocity(v, arguments["velocity_uncond"].detach(), scale) if guided else v
    v, old, x = v.double().flatten(1), _rows(arguments, "velocity_old"), _rows(arguments, "latents")
    branches, advantages = arguments["branches"].double().flatten(2), arguments["advantages"].double()
    _, a, b, s, weight = _scalars(arguments)
    shift, m_old = b * (v - old), a * x + b * old
    ratio = _log_ratio(shift, UNIT * b.abs() * (v.abs() + old.abs()), m_old, branches, s)
    kl, difference = _kl(arguments, v, b / s)
    found = {"log_ratio": ratio, "kl": kl}
    terms, derivative, relative, outside = _surrogate(ratio, weight * advantages, arguments["clip_range"])
    if not relative.isfinite().all():
        return found  # which ratios are clipped is within the error
    count, beta = max(advantages.numel(), 1), arguments.get("beta", 0.0)
    loss_error = (terms.abs() * (relative + 4 * UNIT)).sum() / count + beta * kl.error + TINY
    gradient = _loss_gradient(branches, (a * x, b * v), derivative / count, relative, b / (s**2 * v.shape[1]))
    share = beta * b**2 / (s**2 * v.shape[1] * max(len(v), 1))
    want = gradient.want + share * difference.want
    error = gradient.error + share * difference.error
    error = error.where(want.abs() + error < 1e37, torch.inf)
    shares = {"gradient": scale, "uncond_gradient": 1 - scale} if guided else {"gradient": 1.0}
    shape = got["gradient"].shape
    return found | {
        "loss": Bounded(terms.sum() / count + beta * kl.want, loss_error),
        "clip_fraction": Bounded(outside.double().sum() / count, torch.tensor(1e-6).double()),
        **{n: Bounded((part * want).view(shape), (abs(part) * error + TINY).view(shape)) for n, part in shares.items()},
    }


def _kl(arguments: dict[str, Any], v: Tensor, ratio: Tensor) -> tuple[Bounded, Bounded]:
    """The KL, and v - v_ref; both 0 without a reference."""
    if arguments.get("velocity_ref") is None:
        zero = torch.zeros((), dtype=torch.float64)
        return Bounded(zero, zero + TINY), Bounded(torch.zeros_like(v), torch.zeros_like(v))
    ref = _rows(arguments, "velocity_ref")
    difference, size = v - ref, v.abs() + ref.abs()
    want = (ratio**2 * difference**2).mean(1).sum() / (2 * max(len(v), 1))
    error = 1e-5 * want.abs() + (ratio**2 * (UNIT * size) ** 2).sum() + TINY
    return Bounded(want, error.where(difference.square().sum() < 1e37, torch.inf)), Bounded(difference, 4 * UNIT * size)


def _surrogate(ratio: Bounded, weighted: Tensor, clip: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The terms of the loss, their derivatives, the relative error of both, and which ratios are out of range.

    The error is infinite where it is open whether a ratio is clipped.
    """
    low, high = math.log1p(-clip), math.log1p(clip)
    above, below = ratio.want > high, ratio.want < low
    flat = (above & (weighted > 0)) | (below & (weighted < 0))
    inside = torch.where(flat, 0, ratio.want)
    terms = -weighted * torch.where(flat, torch.where(above, 1 + clip, 1 - clip), inside.exp())
    open_ = torch.minimum((ratio.want - low).abs(), (ratio.want - high).abs()) <= ratio.error
    relative = torch.where(flat, 0, ratio.error.expm1() + ratio.error).where(~open_ & ratio.error.isfinite(), torch.inf)
    return terms, torch.where(flat, 0, terms), relative, above | below


def _loss_gradient(
    branches: Tensor, parts: tuple[Tensor, Tensor], derivative: Tensor, relative: Tensor, factor: Tensor
) -> Bounded:
    """The sum over branches of derivative factor (x' - m), with m the sum of two parts."""
    residual = branches - sum(parts)[:, None]
    residual_error = UNIT * (branches.abs() + sum(part.abs() for part in parts)[:, None]) + TINY
    size = SUBNORMAL * residual.abs() + derivative.abs()[..., None] * (
        residual_error + (relative + 8 * UNIT)[..., None] * residual.abs()
    )
    want = factor * (derivative[..., None] * residual).sum(1)
    weight = (factor * derivative).abs()[..., None]
    fits = (weight * residual.abs().clamp_min(1)).sum(1) < 1e37
    return Bounded(want, (2 * factor.abs() * size.sum(1) + TINY).where(fits, torch.inf))


def _log_ratio(shift: Tensor, shift_error: Tensor, m_old: Tensor, branches: Tensor, s: Tensor) -> Bounded:
    """log r and its error: each product errs with its shift, and with the rounding of the residual."""
    inner = branches - m_old[:, None] - shift[:, None] / 2
    inner_error = UNIT * (branches.abs() + m_old.abs()[:, None] + shift.abs()[:, None]) + TINY
    shift, shift_error = shift[:, None], torch.where(shift == 0, 0.0, shift_error + TINY)[:, None]
    want = (shift * inner).mean(-1) / s**2
    error = (shift.abs() * inner_error + shift_error * inner.abs() + UNIT * 4 * (shift * inner).abs()).mean(-1) / s**2
    largest = torch.maximum((shift * inner).abs().sum(-1), (2 * inner.abs()).amax(-1)) if inner.numel() else want.abs()
    return Bounded(want, error.where((largest < 1e37) & ((largest / s**2) < 1e37), torch.inf))
