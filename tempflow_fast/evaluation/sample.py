"""Noise -> images by the ODE, with any policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..batching import equal_pieces
from ..ops.schedule import StepTable
from ..policies.base import Condition, Policy

FIRST_TRAJECTORY = 1 << 40
"""Trajectory id of row 0. Training counts from 0, so no image here starts from noise that training saw."""


@torch.no_grad()
def sample_images(
    policy: Policy,
    prompts: Sequence[str],
    table: StepTable,
    seed: int = 0,
    guidance_scale: float = 1.0,
    max_batch: int | None = None,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """One image per prompt, drawn without noise on the way.

    Row r starts from noise that depends on (seed, r) alone, so two policies given the same prompts can be compared
    image by image, whatever `max_batch` is.

    Args:
        policy: the model.
        prompts: R texts.
        table: the schedule; its sampler plays no part.
        seed: key of the initial noise.
        guidance_scale: g in v = v_uncond + g (v_cond - v_uncond); 1 turns guidance off.
        max_batch: most images in one network call; None: no limit.
        rows: [R], which rows these are of a larger set of images; None: 0..R-1.

    Returns:
        [R, 3, H, W], float32 in [0, 1], on the host.
    """
    condition = policy.encode(prompts, guided=guidance_scale != 1.0)
    ids = FIRST_TRAJECTORY + (torch.arange(len(prompts)) if rows is None else torch.tensor(rows))
    images = []
    for piece in equal_pieces(len(prompts), max_batch):
        noise = ops.initial_noise(policy.latent_shape, seed, ids[piece], policy.device)
        latents = _solve(policy, noise, condition[piece], table, guidance_scale)
        images.append(policy.decode(latents).float().cpu())
    return torch.cat(images)


def _solve(policy: Policy, latents: Tensor, condition: Condition, table: StepTable, guidance_scale: float) -> Tensor:
    """Latents [R, *shape] carried from the first sigma to the last by Euler steps."""
    for step, sigma in enumerate(table.sigma.tolist()):
        velocity, uncond = policy.velocity(latents, sigma, condition, guidance_scale)
        scale = 1.0 if uncond is None else guidance_scale
        latents = ops.euler_step(latents, velocity, table, step, uncond, scale)
    return latents
