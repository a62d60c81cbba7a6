"""CLIP score: how well image and prompt agree. Weights of openai/clip-vit-large-patch14: MIT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..batching import equal_pieces
from .clip_model import ClipModel
from .pixels import clip_pixels


class Clip:
    """Cosine of the embeddings of image and prompt, in [-1, 1]; papers report 100 times this as CLIP score."""

    name = "clip"
    range = (-1.0, 1.0)

    def __init__(
        self, model: str = "openai/clip-vit-large-patch14", dtype: str = "float32", batch_size: int = 64
    ) -> None:
        """Loads a CLIP model and its tokenizer.

        Args:
            model: directory or hub name.
            dtype: float32, bfloat16 or float16.
            batch_size: images, or texts, per call.

        Raises:
            ValueError: if the dtype is another one.
            OSError: if something cannot be loaded.
        """
        self.clip, self.batch_size = self.load(model, dtype), batch_size

    def load(self, model: str, dtype: str) -> ClipModel:
        """Loads the weights and their tokenizer.

        Args:
            model: directory or hub name.
            dtype: as for the class.
        """
        return ClipModel(model, dtype)

    def pixels(self, images: Tensor) -> Tensor:
        """The model's input [R, 3, S, S].

        Args:
            images: [R, 3, H, W] in [0, 1].
        """
        return clip_pixels(images, self.clip.image_size)

    def score(self, cosine: Tensor) -> Tensor:
        """The reward [R].

        Args:
            cosine: [R].
        """
        return cosine

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float32 [R], on the images' device.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.
        """
        texts = list(dict.fromkeys(prompts))  # the images of a group share a text
        pieces = equal_pieces(len(texts), self.batch_size)
        read = torch.cat([self.clip.text_embeddings(texts[rows], images.device) for rows in pieces])
        place = {text: number for number, text in enumerate(texts)}
        places = torch.tensor([place[prompt] for prompt in prompts], device=images.device)
        pieces = equal_pieces(len(images), self.batch_size)
        seen = torch.cat([self.clip.image_embeddings(self.pixels(images[rows])) for rows in pieces])
        return self.score((seen * read[places]).sum(1))
