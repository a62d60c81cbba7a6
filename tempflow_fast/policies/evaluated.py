"""One call of a policy's velocity, which may be anybody's code."""

from __future__ import annotations

from torch import Tensor

from ..errors import require
from .base import Condition, Policy


def evaluated(
    policy: Policy, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float
) -> tuple[Tensor, Tensor | None]:
    """`policy.velocity`, refused if it writes to its latents: the step and the loss read them afterwards.

    Args:
        policy: the policy.
        latents: [R, *latent_shape].
        sigma: noise level, one number or [R].
        condition: R rows.
        guidance_scale: g.

    Raises:
        ValueError: if the latents have changed.
    """
    version = latents._version
    velocities = policy.velocity(latents, sigma, condition, guidance_scale)
    unchanged = latents._version == version
    require(unchanged, f"{type(policy).__name__}.velocity", "latents", "left as they are", "values written in place")
    return velocities
