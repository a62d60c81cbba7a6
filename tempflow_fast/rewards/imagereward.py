"""ImageReward (arXiv 2304.05977). Weights of THUDM/ImageReward: Apache-2.0; BLIP's architecture: BSD-3-Clause.

They are published in the layout of BLIP's first code, and renamed here to that of transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..batching import equal_pieces
from ..quiet import quiet
from .clip_model import dtype_named
from .pixels import clip_pixels
from .weights import fill, read_weights, score_head

PUBLISHED, WEIGHTS = "THUDM/ImageReward:ImageReward.pt", "ImageReward.safetensors"
"""A pickle on the hub, and the file that `tempflow_fast.convert` makes of it."""
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the raw scores over the authors' prompts."""
MAX_TOKENS = 35
VISION = {"image_size": 224, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
TEXT = {"vocab_size": 30524, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
RENAMINGS = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
    (r"^(vision\..*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
)


class BlipScorer(nn.Module):
    """BLIP's image encoder, its text encoder that attends to the image, and the head that scores both."""

    def __init__(self, vision: Mapping[str, int], text: Mapping[str, int]) -> None:
        """Makes the network without weights.

        Args:
            vision: sizes of the image encoder, by the names of `BlipVisionConfig`.
            text: sizes of the text encoder, by the names of `BlipTextConfig`.
        """
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        widths = {"intermediate_size": 4 * vision["hidden_size"], "layer_norm_eps": 1e-6}
        self.vision = BlipVisionModel(BlipVisionConfig(**{**widths, **vision}))
        # transformers calls it a decoder: only then do its layers attend to the image.
        seen = {"encoder_hidden_size": vision["hidden_size"], "is_decoder": True, "use_cache": False}
        widths = {"intermediate_size": 4 * text["hidden_size"], "max_position_embeddings": 512}
        self.text = BlipTextModel(BlipTextConfig(**{**widths, **seen, **text}), add_pooling_layer=False)
        self.head = score_head(text["hidden_size"])

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores [R].

        Args:
            pixels: [R, 3, S, S], preprocessed.
            input_ids: [R, L], the tokens of the prompts.
            attention_mask: [R, L], 0 for padding.
        """
        image = self.vision(pixel_values=pixels).last_hidden_state
        text = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=image.device),
            is_decoder=False,
        ).last_hidden_state
        return self.head.float()(text[:, 0].float())[:, 0]


class ImageReward:
    """What people prefer: 0 is an average image of the authors' prompts, 1 one standard deviation better."""

    name = "imagereward"
    range = (-math.inf, math.inf)

    @quiet("transformers")
    def __init__(
        self,
        weights: str = WEIGHTS,
        tokenizer: str = "bert-base-uncased",
        dtype: str = "float32",
        batch_size: int = 64,
        vision: Mapping[str, int] = VISION,
        text: Mapping[str, int] = TEXT,
    ) -> None:
        """Loads the published weights.

        Args:
            weights: a safetensors file, or "owner/name:file" on the hub.
            tokenizer: BERT's, a directory or hub name.
            dtype: float32, bfloat16 or float16.
            batch_size: images per call.
            vision: sizes of the image encoder.
            text: sizes of the text encoder.

        Raises:
            ValueError: if the weights do not fit.
            OSError: if something cannot be loaded.
        """
        from transformers import AutoTokenizer

        self.dtype, self.batch_size, self.image_size = dtype_named(dtype), batch_size, vision["image_size"]
        published = renamed(read_weights(weights, PUBLISHED))
        self.network = BlipScorer(vision, text)
        fill(self.network, published, weights)
        self.network.to(self.dtype).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float32 [R], on the images' device.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.
        """
        network = self.network.to(images.device)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(images.device)
        scores = []
        for rows in equal_pieces(len(images), self.batch_size):
            pixels = clip_pixels(images[rows], self.image_size).to(self.dtype)
            scores.append(network(pixels, tokens["input_ids"][rows], tokens["attention_mask"][rows]))
        return (torch.cat(scores) - MEAN) / DEVIATION


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under the names of `BlipScorer`.

    Args:
        weights: published name -> tensor.
    """
    found = {}
    for name, value in weights.items():
        for pattern, replacement in RENAMINGS:
            name = re.sub(pattern, replacement, name)
        if not name.endswith("position_ids"):  # a counter, which newer versions do not store
            found[name] = value
    return found
