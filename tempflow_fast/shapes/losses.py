"""What each part of the shapes pipeline learns from: the losses of `pretrain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

from tempflow_fast.shapes.architecture import TEXT_LENGTH
from tempflow_fast.shapes.prompts import RELATIONS
from tempflow_fast.shapes.world import COLORS, SHAPES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline


def tokenize(pipe: StableDiffusion3Pipeline, texts: list[str]) -> Tensor:
    """Token ids [R, TEXT_LENGTH]."""
    return pipe.tokenizer(
        texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def vae_loss(vae: AutoencoderKL, images: Tensor, rng: torch.Generator) -> Tensor:
    """Reconstruction through noisy latents plus a small penalty on their size.

    The noise makes nearby latents decode alike, so that a flow model's small errors do not show; blank images keep the
    decoder's group normalisation defined where nothing stands.
    """
    images = 2 * images - 1
    images[:2] = 0
    latents = vae.encode(images).latent_dist.mean
    noise = 0.2 * torch.randn(latents.shape, generator=rng)
    output = vae.decode(latents + noise).sample
    return l1_loss(output, images) + mse_loss(output, images) + 2e-3 * latents.square().mean()


def encode_text(pipe: StableDiffusion3Pipeline, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [R, L] -> text [R, L, 2 W] and pooled [R, 2 W], as the pipeline's `encode_prompt` without T5."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    return hidden, torch.cat([out.text_embeds for out in outputs], dim=-1)


def describe(metadata: dict) -> list[int]:
    """What a prompt says as class labels: the count of each shape, its colour, the relation and its subject."""
    include = metadata["include"]
    named = {entry["class"]: entry for entry in include}
    counts = [named[kind]["count"] if kind in named else 0 for kind in SHAPES]
    names = [named.get(kind, {}).get("color") for kind in SHAPES]
    colors = [0 if name is None else 1 + list(COLORS).index(name) for name in names]
    placed = next((entry for entry in include if "position" in entry), None)
    relation = 0 if placed is None else 1 + RELATIONS.index(placed["position"][0])
    subject = 0 if placed is None else 1 + SHAPES.index(placed["class"])
    return [*counts, *colors, relation, subject]


def text_loss(heads: nn.ModuleList, pooled: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of reading every label [R, len(heads)] linearly off the pooled text [R, 2 W]."""
    return sum(cross_entropy(head(pooled), label) for head, label in zip(heads, labels.T, strict=True)) / len(heads)


def noised(latents: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(x_sigma, sigma [R], noise) of latents [R, C, h, w]: half of the sigmas uniform, half shifted by 3 to the noise.

    What the text says is decided while the image is still nearly noise, so those levels are drawn more often.
    """
    rows = len(latents)
    uniform = torch.rand(rows, generator=rng)
    sigma = torch.where(torch.arange(rows) % 2 == 0, uniform, 3 * uniform / (1 + 2 * uniform))
    noise = torch.randn(latents.shape, generator=rng)
    share = sigma.view(-1, 1, 1, 1)
    return (1 - share) * latents + share * noise, sigma, noise


def velocity(transformer: SD3Transformer2DModel, latents: Tensor, text: tuple[Tensor, Tensor], sigma: Tensor) -> Tensor:
    """dx/dsigma [R, C, h, w] at sigma [R]."""
    return transformer(latents, *text, 1000 * sigma, return_dict=False)[0]


def flow_loss(pipe: StableDiffusion3Pipeline, latents: Tensor, ids: Tensor, rng: torch.Generator) -> Tensor:
    """Rectified-flow loss |v - (noise - x0)|^2 (arXiv 2209.03003)."""
    x, sigma, noise = noised(latents, rng)
    return mse_loss(velocity(pipe.transformer, x, encode_text(pipe, ids), sigma), noise - latents)
