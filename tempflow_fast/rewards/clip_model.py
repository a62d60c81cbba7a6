"""A CLIP model of transformers as rewards use it: embeddings of images and texts, each of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a model by name; ValueError for one that rewards do not run in."""
    if name not in DTYPES:
        raise ValueError(f"reward: dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


class ClipModel:
    """Frozen weights and their tokenizer; they follow the images from device to device."""

    def __init__(self, model: str | Any, dtype: str = "float32", tokenizer: str | None = None) -> None:
        """Loads `model`, a directory or hub name, or takes a `CLIPModel` whose tokenizer lies at `tokenizer`.

        Raises:
            ValueError: for an unknown dtype.
            OSError: if something cannot be loaded.
        """
        from transformers import AutoTokenizer, CLIPModel

        self.dtype = dtype_named(dtype)
        network = CLIPModel.from_pretrained(model) if isinstance(model, str) else model
        self.network = network.to(self.dtype).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        self.image_size: int = self.network.config.vision_config.image_size
        self.max_length: int = self.network.config.text_config.max_position_embeddings

    @property
    def logit_scale(self) -> Tensor:
        """What the similarity of a pair is multiplied by in training, []."""
        return self.network.logit_scale.float().exp()

    @torch.no_grad()
    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """[R, E], float32, of preprocessed pixels [R, 3, S, S], on their device."""
        network = self.network.to(pixels.device)
        return _unit(network.get_image_features(pixel_values=pixels.to(self.dtype)))

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        """[R, E], float32, of R texts, each cut at the model's length."""
        network = self.network.to(device)
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        inputs = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        return _unit(network.get_text_features(**inputs))


def _unit(features: Any) -> Tensor:
    """Embeddings of length 1; transformers 5 wraps them."""
    embeddings = (features if isinstance(features, Tensor) else features.pooler_output).float()
    return embeddings / embeddings.norm(dim=1, keepdim=True)
