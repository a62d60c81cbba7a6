"""LAION's aesthetic score v2: a small head (improved-aesthetic-predictor, Apache-2.0) on CLIP ViT-L/14 (MIT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..batching import equal_pieces
from .clip_model import ClipModel
from .pixels import clip_pixels
from .weights import fill, read_weights, score_head

PUBLISHED, HEAD = "trl-lib/ddpo-aesthetic-predictor:aesthetic-model.pth", "aesthetic-model.safetensors"
"""A pickle on the hub, and the file that `tempflow_fast.convert` makes of it."""


class Aesthetic:
    """How well people like an image, about 1 to 10; the prompt plays no part.

    The head was trained on this CLIP model; with another one its scores mean nothing.
    """

    name = "aesthetic"
    range = (-math.inf, math.inf)

    def __init__(
        self,
        head: str = HEAD,
        model: str = "openai/clip-vit-large-patch14",
        dtype: str = "float32",
        batch_size: int = 64,
    ) -> None:
        """Loads the head and CLIP.

        Args:
            head: a safetensors file, or "owner/name:file" on the hub.
            model: the CLIP model, a directory or hub name.
            dtype: float32, bfloat16 or float16, of CLIP.
            batch_size: images per call of CLIP.

        Raises:
            ValueError: if the head does not fit.
            OSError: if something cannot be loaded.
        """
        weights = read_weights(head, PUBLISHED)
        self.clip, self.batch_size = ClipModel(model, dtype), batch_size
        self.head = score_head(self.clip.network.config.projection_dim).eval().requires_grad_(False)
        fill(self.head, {name.removeprefix("layers."): value for name, value in weights.items()}, head)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float32 [R], on the images' device.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.
        """
        head = self.head.to(images.device)
        scores = [
            head(self.clip.image_embeddings(clip_pixels(images[rows], self.clip.image_size)))
            for rows in equal_pieces(len(images), self.batch_size)
        ]
        return torch.cat(scores)[:, 0]
