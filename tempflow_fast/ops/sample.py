"""The ops of the rollout: the guided velocity, the Euler step, the branch step and the initial noise.

A section per op: its schema, then the public function, which checks the arguments and views latents as rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import fail, integer, integers
from . import checks, reference
from .noise import MAX_BRANCHES
from .registration import define, registered, underived
from .schedule import StepTable

# ---- guided_velocity ------------------------------------------------------------------------------------------------

define(
    "guided_velocity(Tensor velocity, Tensor velocity_uncond, float guidance_scale) -> Tensor",
    lambda velocity, velocity_uncond, guidance_scale: velocity.new_empty(velocity.shape),
)


def guided_velocity(velocity: Tensor, velocity_uncond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance, v_uncond + guidance_scale (v_cond - v_uncond).

    It is bit for bit the velocity that `policy_loss` forms from the same arguments, so it serves as the `velocity_old`
    of a policy that is trained with guidance.

    Args:
        velocity: v_cond, [N, *shape].
        velocity_uncond: v_uncond, shape, dtype and device of `velocity`.
        guidance_scale: finite.

    Returns:
        [N, *shape], dtype and device of `velocity`, differentiable.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    v = checks.flat("guided_velocity", "velocity", velocity)
    u = checks.row_like("guided_velocity", "velocity_uncond", velocity_uncond, "velocity", velocity)
    scale = checks.guidance("guided_velocity", u, guidance_scale)
    return underived("guided_velocity", v.dtype, v, u)(v, u, scale).view(velocity.shape)


# ---- euler_step -----------------------------------------------------------------------------------------------------

define(
    "euler_step(Tensor latents, Tensor velocity, Tensor? velocity_uncond, float guidance_scale, Tensor coefficients, "
    "SymInt step) -> Tensor",
    lambda latents, *_: latents.new_empty(latents.shape),
)


def euler_step(
    latents: Tensor,
    velocity: Tensor,
    table: StepTable,
    step: int,
    velocity_uncond: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """One Euler step of the ODE, latents + dt v, differentiable in latents and velocities.

    Args:
        latents: [N, *shape].
        velocity: shape, dtype and device of `latents`; with guidance the conditional velocity.
        table: the schedule.
        step: 0..T-1.
        velocity_uncond: like `velocity`; v is then v_uncond + guidance_scale (v_cond - v_uncond).
        guidance_scale: finite; 1 without `velocity_uncond`.

    Returns:
        The latents at sigma_next, [N, *shape], dtype and device of `latents`.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    x = checks.flat("euler_step", "latents", latents)
    v = checks.row_like("euler_step", "velocity", velocity, "latents", latents)
    u = checks.optional_row_like("euler_step", "velocity_uncond", velocity_uncond, "latents", latents)
    scale = checks.guidance("euler_step", u, guidance_scale)
    step = checks.step_index("euler_step", step, table)
    op = underived("euler_step", x.dtype, x, v, u)
    return op(x, v, u, scale, table.coefficients(x.device), step).view(latents.shape)


# ---- branch_step ----------------------------------------------------------------------------------------------------


def _branch_step_fake(
    latents: Tensor,
    velocity: Tensor,
    velocity_uncond: Tensor | None,
    guidance_scale: float,
    coefficients: Tensor,
    step: int,
    num_branches: int,
    *_: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    n, d = latents.shape
    log_prob = latents.new_empty(n, num_branches, dtype=reference.compute_dtype(latents.dtype))
    return latents.new_empty(n, d), latents.new_empty(n, num_branches, d), log_prob


define(
    "branch_step(Tensor latents, Tensor velocity, Tensor? velocity_uncond, float guidance_scale, Tensor coefficients, "
    "SymInt step, SymInt num_branches, Tensor seed, Tensor trajectory_ids) -> (Tensor, Tensor, Tensor)",
    _branch_step_fake,
)


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
    """Draws K SDE branches from the trunk's state and moves the trunk by the ODE, in one pass.

    A branch is a x + b v + s eps (TempFlow-GRPO, arXiv 2508.04324). Its noise depends on (seed, trajectory id, step,
    branch, element) alone, so any subset, order or split of the trajectories draws the same bits.

    Args:
        latents: the trunk's state x, [N, *shape].
        velocity: shape, dtype and device of `latents`; with guidance the conditional velocity.
        table: the schedule and sampler.
        step: a step of `table` that adds noise.
        num_branches: K, 1..65536.
        seed: 0..2^63-1, or an int64 tensor with one value.
        trajectory_ids: N global ids (int64), never positions in a batch.
        velocity_uncond: like `velocity`; v is then v_uncond + guidance_scale (v_cond - v_uncond).
        guidance_scale: finite; 1 without `velocity_uncond`.

    Returns:
        latents_next [N, *shape]: the trunk at sigma_next. branches [N, K, *shape]. log_prob [N, K]: log-densities of
        the branches as stored, means over the elements, float32 or better. Derivatives of the first two are those for
        constant noise; `log_prob` is then a constant, and the policy's gradient comes from the op of that name.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    x = checks.flat("branch_step", "latents", latents)
    v = checks.row_like("branch_step", "velocity", velocity, "latents", latents)
    u = checks.optional_row_like("branch_step", "velocity_uncond", velocity_uncond, "latents", latents)
    scale = checks.guidance("branch_step", u, guidance_scale)
    step = checks.step_index("branch_step", step, table, noisy=True)
    num_branches = integer("branch_step", "num_branches", num_branches)
    if not 1 <= num_branches <= MAX_BRANCHES:
        fail("branch_step", "num_branches", f"in 1..{MAX_BRANCHES}", num_branches)
    checks.amount("branch_step", "num_branches", num_branches * x.shape[0], x.shape[1])
    ids = checks.ids("branch_step", trajectory_ids, x.shape[0], x.device)
    key = checks.seed_tensor("branch_step", seed, x.device)
    latents_next, branches, log_prob = underived("branch_step", x.dtype, x, v, u)(
        x, v, u, scale, table.coefficients(x.device), step, num_branches, key, ids
    )
    return latents_next.view(latents.shape), branches.unflatten(2, latents.shape[1:]), log_prob


# ---- initial_noise --------------------------------------------------------------------------------------------------

define(
    "initial_noise(Tensor trajectory_ids, Tensor seed, SymInt numel) -> Tensor",
    lambda trajectory_ids, seed, numel: trajectory_ids.new_empty(trajectory_ids.shape[0], numel, dtype=torch.float32),
)


def initial_noise(
    shape: Sequence[int],
    seed: int | Tensor,
    trajectory_ids: Sequence[int] | Tensor,
    device: torch.device | str | None = None,
) -> Tensor:
    """Unit Gaussian starts of the trajectories, from the noise function of `branch_step`.

    Args:
        shape: of one latent.
        seed: 0..2^63-1, or an int64 tensor with one value.
        trajectory_ids: N global ids (int64).
        device: of the result; None: that of `trajectory_ids`.

    Returns:
        float32 [N, *shape].

    Raises:
        ValueError: naming the argument that does not fit.
    """
    shape = tuple(integers("initial_noise", "shape", shape))
    if not shape or min(shape) < 1:
        fail("initial_noise", "shape", "positive sizes", list(shape))
    device = None if device is None else checks.usable_device("initial_noise", device)
    ids = checks.ids("initial_noise", trajectory_ids, None, device)
    key, numel = checks.seed_tensor("initial_noise", seed, ids.device), math.prod(shape)
    checks.amount("initial_noise", "shape", ids.shape[0], numel)
    return registered("initial_noise", torch.float32)(ids, key, numel).view(ids.shape[0], *shape)
