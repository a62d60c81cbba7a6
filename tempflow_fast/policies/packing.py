"""Latents as tokens: the elements of a token are 2 x 2 pixels of the autoencoder's latent, channel by channel."""

from __future__ import annotations

import math

from torch import Tensor

from .diffusers_pipeline import DiffusersPolicy


class PackedPolicy(DiffusersPolicy):
    """A `DiffusersPolicy` whose latents are packed tokens: [H/2 * W/2, 4 C] for latents [C, H, W] of the VAE."""

    def _latent_shape(self) -> tuple[int, ...]:
        return math.prod(self._grid), self.pipeline.transformer.config.in_channels

    def _unpacked(self, tokens: Tensor) -> Tensor:
        """Tokens [R, L, 4 C] -> [R, C, H, W]."""
        cells = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, self._grid)  # [R, H/2, W/2, C, 2, 2]
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
