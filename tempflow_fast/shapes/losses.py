"""The parts of the shapes pipeline as functions of tensors, and the loss of its autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from tempflow_fast.shapes.architecture import TEXT_LENGTH
from tempflow_fast.shapes.world import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

    from tempflow_fast.shapes.world import Scene

BLOCK = 500
"""Number of images to encode or decode at a time."""


def tokenize(pipe: StableDiffusion3Pipeline, texts: list[str]) -> Tensor:
    """Token ids [R, TEXT_LENGTH] of R texts, padded or truncated."""
    return pipe.tokenizer(
        texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def encode_text(pipe: StableDiffusion3Pipeline, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the transformer gets of the text, as from the pipeline's `encode_prompt` without T5.

    Args:
        pipe: its two text encoders have width W.
        ids: token ids [R, L].

    Returns:
        Token vectors [R, L, 2 W] and pooled vectors [R, 2 W].
    """
    outputs = [encoder(ids, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    return hidden, torch.cat([out.text_embeds for out in outputs], dim=-1)


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: Sequence[Scene]) -> Tensor:
    """Latents [len(scenes), C, h, w] of rendered scenes, before scaling."""
    blocks = (render(scenes[i : i + BLOCK]) for i in range(0, len(scenes), BLOCK))
    return torch.cat([vae.encode(2 * images - 1).latent_dist.mean for images in blocks])


@torch.no_grad()
def decode_images(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images [R, 3, H, W] in [0, 1] of scaled latents [R, C, h, w]."""
    blocks = [vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(BLOCK)]
    return torch.cat(blocks).clamp(-1, 1) / 2 + 0.5


def velocity(transformer: SD3Transformer2DModel, latents: Tensor, text: tuple[Tensor, Tensor], sigma: Tensor) -> Tensor:
    """The predicted velocity dx/dsigma, [R, C, h, w].

    Args:
        transformer: the network.
        latents: noised latents x, [R, C, h, w].
        text: token vectors and pooled vectors, from `encode_text`.
        sigma: noise levels [R] in [0, 1].
    """
    return transformer(latents, *text, 1000 * sigma, return_dict=False)[0]


def vae_loss(vae: AutoencoderKL, images: Tensor, rng: torch.Generator) -> Tensor:
    """Reconstruction error through noised latents, plus a small penalty on their size.

    The noise makes nearby latents decode alike, so that small errors of a flow model do not show. The first two images
    are replaced by blank ones, which keep the decoder's group normalisation well-defined on empty areas.

    Args:
        vae: the autoencoder.
        images: [R, 3, H, W] in [0, 1].
        rng: draws the noise.
    """
    images = 2 * images - 1
    images[:2] = 0
    latents = vae.encode(images).latent_dist.mean
    noise = 0.2 * torch.randn(latents.shape, generator=rng)
    output = vae.decode(latents + noise).sample
    return l1_loss(output, images) + mse_loss(output, images) + 2e-3 * latents.square().mean()
