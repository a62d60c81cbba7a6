"""How networks are called whose pipelines are not there: the shapes of their arguments, without data."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

Row = dict[str, Tensor]
SOURCE_GRID = (64, 64)
"""Tokens of a source image of 1024 x 1024 pixels, the area to which the pipelines resize them, or the largest."""


class Measured(Protocol):
    """What the calls depend on."""

    config: Any
    """Of the network."""
    grid: tuple[int, int]
    """Half as many as latents on a side."""
    tokens: int
    """Of a prompt, for the long text encoder."""
    clip_tokens: int
    """Of a prompt, for CLIP."""
    has_t5: bool
    """Whether there is a T5 text encoder."""
    num_sources: int
    """Of a prompt's source images."""


class SD3:
    """How an SD3 network is called."""

    @staticmethod
    def prepare(network: Any) -> None:
        """Replaces what needs data."""

    @staticmethod
    def latent_shape(policy: Measured) -> tuple[int, ...]:
        return policy.config.in_channels, 2 * policy.grid[0], 2 * policy.grid[1]

    @staticmethod
    def text_shapes(policy: Measured) -> dict[str, tuple[int, ...]]:
        tokens = policy.clip_tokens + (policy.tokens if policy.has_t5 else 0)
        return {"text": (tokens, policy.config.joint_attention_dim), "pooled": (policy.config.pooled_projection_dim,)}

    @staticmethod
    def arguments(policy: Measured, latents: Tensor, sigma: Tensor, row: Row) -> dict[str, Any]:
        texts = {"encoder_hidden_states": row["text"], "pooled_projections": row["pooled"]}
        return {"hidden_states": latents, "timestep": 1000 * sigma, **texts}

    @staticmethod
    def for_vae(policy: Measured, latents: Tensor) -> Tensor:
        return latents


class Flux(SD3):
    """A FLUX network: latents are packed tokens."""

    @staticmethod
    def latent_shape(policy: Measured) -> tuple[int, ...]:
        return policy.grid[0] * policy.grid[1], policy.config.in_channels

    @staticmethod
    def text_shapes(policy: Measured) -> dict[str, tuple[int, ...]]:
        config = policy.config
        return {"text": (policy.tokens, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}

    @staticmethod
    def arguments(policy: Measured, latents: Tensor, sigma: Tensor, row: Row) -> dict[str, Any]:
        return SD3.arguments(policy, latents, sigma, row) | Flux.positions(policy, latents, sigma, row, axes=3)

    @staticmethod
    def positions(policy: Measured, latents: Tensor, sigma: Tensor, row: Row, axes: int) -> dict[str, Any]:
        """What both generations of FLUX take: where tokens are along so many axes, the time, and the guidance."""
        ids = {
            "img_ids": latents.new_zeros(latents.shape[1], axes, dtype=torch.float32),
            "txt_ids": latents.new_zeros(row["text"].shape[1], axes, dtype=torch.float32),
        }
        return {**ids, "timestep": sigma, "guidance": sigma if policy.config.guidance_embeds else None}

    @staticmethod
    def for_vae(policy: Measured, latents: Tensor) -> Tensor:
        cells = latents.unflatten(2, (-1, 2, 2)).unflatten(1, policy.grid)
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class QwenImage(Flux):
    """A Qwen-Image network: an image is a video of one frame."""

    @staticmethod
    def prepare(network: Any) -> None:
        embed = network.pos_embed  # its tables are no buffers
        network.pos_embed = type(embed)(theta=embed.theta, axes_dim=embed.axes_dim, scale_rope=embed.scale_rope)

    @staticmethod
    def text_shapes(policy: Measured) -> dict[str, tuple[int, ...]]:
        return {"text": (policy.tokens, policy.config.joint_attention_dim)}

    @staticmethod
    def arguments(policy: Measured, latents: Tensor, sigma: Tensor, row: Row) -> dict[str, Any]:
        shapes = [[(1, *policy.grid), *[(1, *SOURCE_GRID)] * policy.num_sources]] * len(latents)
        return {"hidden_states": latents, "timestep": sigma, "encoder_hidden_states": row["text"], "img_shapes": shapes}

    @staticmethod
    def for_vae(policy: Measured, latents: Tensor) -> Tensor:
        return Flux.for_vae(policy, latents)[:, :, None]


class Flux2(Flux):
    """A FLUX.2 network: its autoencoder has patches for channels."""

    @staticmethod
    def text_shapes(policy: Measured) -> dict[str, tuple[int, ...]]:
        return {"text": (policy.tokens, policy.config.joint_attention_dim)}

    @staticmethod
    def arguments(policy: Measured, latents: Tensor, sigma: Tensor, row: Row) -> dict[str, Any]:
        texts = {"encoder_hidden_states": row["text"]}
        return {"hidden_states": latents, **texts, **Flux.positions(policy, latents, sigma, row, axes=4)}


class ZImage(SD3):
    """A Z-Image network: it takes lists of rows."""

    @staticmethod
    def prepare(network: Any) -> None:
        network.rope_embedder.freqs_cis = None  # made again by the next call

    @staticmethod
    def text_shapes(policy: Measured) -> dict[str, tuple[int, ...]]:
        return {"text": (policy.tokens, policy.config.cap_feat_dim)}

    @staticmethod
    def arguments(policy: Measured, latents: Tensor, sigma: Tensor, row: Row) -> dict[str, Any]:
        return {"x": list(latents[:, :, None]), "t": 1 - sigma, "cap_feats": list(row["text"])}


CALLS: dict[str, type[SD3]] = {
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": Flux,
    "QwenImageTransformer2DModel": QwenImage,
    "Flux2Transformer2DModel": Flux2,
    "ZImageTransformer2DModel": ZImage,
}
"""Class of a network -> how it is called."""
