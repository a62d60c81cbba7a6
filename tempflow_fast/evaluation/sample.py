"""Noise -> images by the ODE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import interruption, ops
from ..batching import equal_pieces
from ..ops.schedule import StepTable
from ..policies.base import Condition, Policy, encoded
from ..policies.evaluated import evaluated
from ..policies.finite import finite_rows, require_finite

FIRST_TRAJECTORY = 1 << 40
"""Trajectory id of row 0. Training counts from 0, so no image of an evaluation starts from noise that training saw."""


@torch.no_grad()
def sample_images(
    policy: Policy,
    prompts: Sequence[str],
    table: StepTable,
    seed: int = 0,
    guidance_scale: float = 1.0,
    max_batch: int | None = None,
    rows: Sequence[int] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    decode_batch: int | None = None,
) -> Tensor:
    """Draws one image or video per prompt, deterministically from its initial noise.

    The noise of row r depends only on (seed, r), so two policies with the same prompts can be compared image by image,
    whatever `max_batch` is.

    Args:
        policy: the model.
        prompts: R texts.
        table: the schedule; its sampler is ignored.
        seed: key of the initial noise.
        guidance_scale: g in v = v_uncond + g (v_cond - v_uncond); up to 1 turns guidance off.
        max_batch: maximum number of images in one network call; None: no limit.
        rows: R indices of these images in a larger set; None: 0..R-1.
        metadata: R dictionaries, whose `image` names source images; None: empty ones.
        decode_batch: maximum number of images in one decoding call; None: those of a network call.

    Returns:
        [R, 3, H, W] images or [R, F, 3, H, W] videos, float32 in [0, 1], on the host.

    Raises:
        NotFiniteError: after all images are drawn, if one of them or its latent is infinite or NaN.
    """
    metadata = [{} for _ in prompts] if metadata is None else metadata
    condition = encoded("sample_images", policy, prompts, metadata, policy.guides(guidance_scale))
    rows = range(len(prompts)) if rows is None else rows
    ids = FIRST_TRAJECTORY + torch.tensor(rows)
    images, finite = [], []
    for piece in equal_pieces(len(prompts), max_batch):
        noise = ops.initial_noise(policy.latent_shape, seed, ids[piece], policy.device)
        latents = _solve(policy, noise, condition[piece], table, guidance_scale)
        for part in latents.split(decode_batch or len(latents)):
            decoded = policy.decode(part)
            finite.append(finite_rows(part, decoded))
            images.append(decoded.float().cpu())
    require_finite(policy, torch.cat(finite, dim=1), prompts, rows)
    return torch.cat(images)


def _solve(policy: Policy, latents: Tensor, condition: Condition, table: StepTable, guidance_scale: float) -> Tensor:
    """Moves latents [R, *shape] from the first sigma to the last by Euler steps."""
    for step, sigma in enumerate(table.sigma.tolist()):
        interruption.before_call()
        velocity, uncond = evaluated(policy, latents, sigma, condition, guidance_scale)
        scale = 1.0 if uncond is None else guidance_scale
        latents = ops.euler_step(latents, velocity, table, step, uncond, scale)
    return latents
