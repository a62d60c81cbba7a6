"""Human preference score v2 (arXiv 2306.09341). Weights of xswu/HPSv2: Apache-2.0.

They are published in the layout of open_clip, and renamed here to that of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..quiet import quiet
from .clip import Clip
from .clip_model import ClipModel
from .pickscore import PROCESSOR
from .pixels import CLIP_MEAN, CLIP_STD, normalized, quantized
from .weights import fill, read_weights

PUBLISHED, WEIGHTS = "xswu/HPSv2:HPS_v2.1_compressed.pt", "HPS_v2.1_compressed.safetensors"
"""A pickle on the hub, and the file that `tempflow_fast.convert` makes of it."""
PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}


class HPSv2(Clip):
    """Cosine of the embeddings of image and prompt, in [-1, 1], as in the authors' package: about 0.2 to 0.35."""

    name = "hpsv2"

    def __init__(
        self, weights: str = WEIGHTS, model: str = PROCESSOR, dtype: str = "float32", batch_size: int = 64
    ) -> None:
        """Loads the published weights.

        Args:
            weights: a safetensors file, or "owner/name:file" on the hub; "" if `model` already has them.
            model: directory or hub name of the CLIP model that they are a version of, in the layout of transformers.
            dtype: float32, bfloat16 or float16.
            batch_size: images, or texts, per call.

        Raises:
            ValueError: if the weights do not fit.
            OSError: if something cannot be loaded.
        """
        self.weights = weights
        super().__init__(model, dtype, batch_size)

    @quiet("transformers")
    def load(self, model: str, dtype: str) -> ClipModel:
        """Loads the model with the published weights instead of its own.

        Args:
            model: directory or hub name.
            dtype: as for the class.
        """
        if not self.weights:
            return ClipModel(model, dtype)
        from transformers import CLIPConfig, CLIPModel

        weights = dict(renamed(read_weights(self.weights, PUBLISHED)))
        network = CLIPModel(CLIPConfig.from_pretrained(model))
        fill(network, weights, self.weights)
        return ClipModel(network, dtype, tokenizer=model)

    def pixels(self, images: Tensor) -> Tensor:
        """The model's input [R, 3, S, S]: the longer side resized, the shorter one padded with black bars.

        Args:
            images: [R, 3, H, W] in [0, 1].
        """
        return normalized(letterboxed(images, self.clip.image_size), CLIP_MEAN, CLIP_STD)


def letterboxed(images: Tensor, size: int) -> Tensor:
    """Images fitted into black squares [R, 3, size, size].

    Args:
        images: [R, 3, H, W] in [0, 1].
        size: side of the squares in pixels.
    """
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    height, width = round(height * scale), round(width * scale)
    images = quantized(images)
    if images.shape[-2:] != (height, width):
        images = interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
    above, left = (size - height) // 2, (size - width) // 2
    return pad(images, (left, size - width - left, above, size - height - above))


def renamed(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """open_clip's weights of a CLIP model under the names of transformers.

    Args:
        weights: name in open_clip -> tensor.
    """
    for name, value in weights.items():
        stem, _, suffix = name.rpartition(".")
        if name in ("visual.proj", "text_projection"):
            yield ("visual_projection.weight" if name == "visual.proj" else "text_projection.weight"), value.T
        elif "resblocks." in name:
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, _, part = name.partition("resblocks.")[2].partition(".")
            yield from _block(f"{tower}.encoder.layers.{number}", part, value)
        elif name in NAMES or stem in NAMES:
            yield (NAMES[name] if name in NAMES else f"{NAMES[stem]}.{suffix}"), value
        elif name != "attn_mask":
            yield name, value  # unknown: `fill` reports it


def _block(layer: str, part: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One tensor of a transformer block, in which queries, keys and values are stacked."""
    stem, _, suffix = part.rpartition(".")
    if part.startswith("attn.in_proj_"):
        for letter, piece in zip("qkv", value.chunk(3), strict=True):
            yield f"{layer}.self_attn.{letter}_proj.{part.removeprefix('attn.in_proj_')}", piece
    else:
        yield f"{layer}.{PARTS.get(stem, stem)}.{suffix}", value
