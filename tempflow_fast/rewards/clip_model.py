"""A CLIP model of transformers as rewards use it: embeddings of images and texts, normalised to length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import unknown
from ..quiet import quiet
from .weights import loaded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a reward's model.

    Args:
        name: float32, bfloat16 or float16.

    Raises:
        ValueError: for any other name.
    """
    if name not in DTYPES:
        unknown("reward", "dtype", name, DTYPES)
    return DTYPES[name]


class ClipModel:
    """Frozen weights and their tokenizer; the weights move to the device of the images."""

    @quiet("transformers")
    def __init__(self, model: str | Any, dtype: str = "float32", tokenizer: str | None = None) -> None:
        """Loads a model, or takes a loaded one.

        Args:
            model: directory or hub name, or a `CLIPModel`.
            dtype: float32, bfloat16 or float16.
            tokenizer: directory or hub name of the tokenizer; None: the model's.

        Raises:
            ValueError: if the dtype is unknown or weights are missing.
            OSError: if something cannot be loaded.
        """
        from transformers import AutoTokenizer, CLIPModel

        self.dtype = dtype_named(dtype)
        network = loaded(CLIPModel, model) if isinstance(model, str) else model
        self.network = network.to(self.dtype).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        self.image_size: int = self.network.config.vision_config.image_size
        self.max_length: int = self.network.config.text_config.max_position_embeddings

    @property
    def logit_scale(self) -> Tensor:
        """The factor of the similarity in training, []."""
        return self.network.logit_scale.float().exp()

    @torch.no_grad()
    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Embeddings of images, float32 [R, E], on their device.

        Args:
            pixels: [R, 3, S, S], preprocessed.
        """
        network = self.network.to(pixels.device)
        return _unit(network.get_image_features(pixel_values=pixels.to(self.dtype)))

    @torch.no_grad()
    def text_embeddings(self, texts: Sequence[str], device: torch.device | str) -> Tensor:
        """Embeddings of texts, float32 [R, E].

        Args:
            texts: R texts, which are cut at the model's length.
            device: where to compute them.
        """
        network = self.network.to(device)
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        inputs = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        return _unit(network.get_text_features(**inputs))


def _unit(features: Any) -> Tensor:
    """Embeddings scaled to length 1; transformers 5 wraps them in an output."""
    embeddings = (features if isinstance(features, Tensor) else features.pooler_output).float()
    return embeddings / embeddings.norm(dim=1, keepdim=True)
