"""Human preference score v3 (arXiv 2508.03789): Qwen2-VL-7B (Apache-2.0) that reads an instruction, and a small head.

Weights of MizzenAI/HPSv3: see their model card; the authors' code is MIT. The instruction is part of the model, but it
is the authors' text and not in this package; see docs/rewards.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..batching import equal_pieces
from ..errors import fail, require
from ..quiet import quiet
from .clip_model import dtype_named
from .pixels import CLIP_MEAN, CLIP_STD, as_bytes, normalized
from .resize import resized
from .weights import fill, read_weights

WEIGHTS, MODEL = "MizzenAI/HPSv3:HPSv3.safetensors", "Qwen/Qwen2-VL-7B-Instruct"
PROMPT, REWARD, IMAGE = "{text_prompt}", "<|Reward|>", "<|image_pad|>"
"""The place of the prompt in the instruction, the token that the head reads, and the token of an image."""
NUM_PIXELS = 256 * 28 * 28
"""Approximate number of pixels that an image is resized to."""


class Scorer(nn.Module):
    """Qwen2-VL and the head, under the names of the published weights."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        """Makes the network without weights.

        Args:
            config: a `Qwen2VLConfig`.
            dtype: of Qwen2-VL; the head stays in float32.
        """
        from transformers import AutoModel

        super().__init__()
        # Everything is rounded, including the frequencies of the positions, as it was published.
        self.model = AutoModel.from_config(config, dtype=dtype).to(dtype)
        layers = nn.Linear(config.get_text_config().hidden_size, 1024), nn.Linear(1024, 16), nn.Linear(16, 2)
        self.rm_head = nn.Sequential(layers[0], nn.ReLU(), nn.Identity(), layers[1], nn.ReLU(), layers[2])
        self.image_token: int = config.image_token_id

    def forward(self, tokens: Tensor, mask: Tensor, patches: Tensor, grid: Tensor, places: Tensor) -> Tensor:
        """The output of the head, [R, 2]: the score, and its uncertainty.

        Args:
            tokens: [R, L], padded on the right.
            mask: [R, L], 0 for padding.
            patches: the images as cut by `image_patches`.
            grid: [R, 3], the frames, rows and columns of patches.
            places: [R], the token of each row that the head reads.
        """
        words = self.model.get_input_embeddings()(tokens)
        seen = self.model.visual(patches, grid_thw=grid)
        seen = seen if isinstance(seen, Tensor) else seen.pooler_output  # transformers 5 wraps it
        words = words.masked_scatter((tokens == self.image_token)[..., None], seen.to(words.dtype))
        # As the authors run it: consecutive positions, without the rows and columns that Qwen2-VL counts in an image.
        order = torch.arange(tokens.shape[1], device=tokens.device).expand(3, *tokens.shape)
        read = self.model.language_model(inputs_embeds=words, attention_mask=mask, position_ids=order, use_cache=False)
        return self.rm_head(read.last_hidden_state[torch.arange(len(tokens)), places].float())


class HPSv3:
    """The mean of the rating that the model predicts for people; its uncertainty is not used."""

    name = "hpsv3"
    range = (-math.inf, math.inf)

    @quiet("transformers")
    def __init__(
        self,
        instruction: str = "",
        weights: str = WEIGHTS,
        model: str = MODEL,
        dtype: str = "bfloat16",
        batch_size: int = 8,
    ) -> None:
        """Loads the published weights.

        Args:
            instruction: a text file with the authors' instruction, including `{text_prompt}` and `<|Reward|>`.
            weights: a safetensors file, or "owner/name:file" on the hub.
            model: directory or hub name of the Qwen2-VL that they are a version of, for its settings and tokenizer.
            dtype: bfloat16, as published, float32 or float16.
            batch_size: images per call.

        Raises:
            ValueError: for an instruction that is missing or of another form, or weights that do not fit.
            OSError: if something cannot be loaded.
        """
        from transformers import AutoConfig, AutoTokenizer

        self.instruction, self.batch_size = _instruction(instruction), batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
        self.tokenizer.padding_side = "right"
        self.config = AutoConfig.from_pretrained(model)
        self.config.get_text_config().vocab_size = len(self.tokenizer)
        self.network = Scorer(self.config, dtype_named(dtype))
        fill(self.network, renamed(read_weights(weights)), weights)
        self.network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float32 [R], on the images' device.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            ValueError: if a prompt holds one of the special tokens.
        """
        for prompt in prompts:
            is_plain = REWARD not in prompt and IMAGE not in prompt
            require(is_plain, "hpsv3", "prompt", f"without {REWARD} and {IMAGE}", repr(prompt))
        network = self.network.to(images.device)
        scores = []
        for rows in equal_pieces(len(images), self.batch_size):
            patches, grid = self.patches(images[rows])
            tokens = self.tokens(prompts[rows], grid).to(images.device)
            ids = tokens["input_ids"]
            places = (ids == self.tokenizer.convert_tokens_to_ids(REWARD)).int().argmax(1)
            grids = torch.tensor(grid, device=images.device).expand(len(ids), 3)
            scores.append(network(ids, tokens["attention_mask"], patches, grids, places)[:, 0])
        return torch.cat(scores)

    def patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """The network's input, and the frames, rows and columns of patches of each image.

        Args:
            images: [R, 3, H, W] in [0, 1].
        """
        vision = self.config.vision_config
        height, width = images.shape[-2:]
        height, width = fitted(height, width, vision.patch_size * vision.spatial_merge_size)
        pixels = normalized(resized(as_bytes(images), height, width).float() / 255, CLIP_MEAN, CLIP_STD)
        patches = image_patches(pixels, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        return patches, (1, height // vision.patch_size, width // vision.patch_size)

    def tokens(self, prompts: Sequence[str], grid: tuple[int, int, int]) -> Any:
        """`input_ids` and `attention_mask` [R, L] of the instruction.

        Args:
            prompts: R texts.
            grid: frames, rows and columns of patches, the same for all images.
        """
        num = math.prod(grid) // self.config.vision_config.spatial_merge_size**2
        texts = []
        for prompt in prompts:
            content = [{"type": "image"}, {"type": "text", "text": self.instruction.replace(PROMPT, prompt)}]
            talk = [{"role": "user", "content": content}]
            text = self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            texts.append(text.replace(IMAGE, IMAGE * num))
        return self.tokenizer(texts, padding=True, return_tensors="pt")


def fitted(height: int, width: int, unit: int) -> tuple[int, int]:
    """Height and width in multiples of `unit` with about `NUM_PIXELS` pixels, as Qwen2-VL resizes images.

    Args:
        height: of the image.
        width: of the image.
        unit: pixels along one side of a merged patch.
    """
    near = round(height / unit) * round(width / unit) * unit**2
    if near == NUM_PIXELS:
        return round(height / unit) * unit, round(width / unit) * unit
    scale, whole = math.sqrt(NUM_PIXELS / (height * width)), math.floor if near > NUM_PIXELS else math.ceil
    return max(whole(height * scale / unit), 1) * unit, max(whole(width * scale / unit), 1) * unit


def image_patches(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Cuts images into patches [R H W / patch^2, 3 frames patch^2].

    The patches that the model merges, squares of `merge` by `merge`, are adjacent in the result.

    Args:
        pixels: [R, 3, H, W], the same for all frames.
        patch: side of a patch in pixels.
        merge: side of a merged square in patches.
        frames: number of frames in a patch.
    """
    cut = pixels.unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # image, square, patch in the square, colour, pixel: rows, then columns
    return cut[..., None, :, :].expand(*cut.shape[:6], frames, patch, patch).flatten(5).flatten(0, 4)


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under the names of `Scorer`; older versions of transformers had other names.

    Args:
        weights: published name -> tensor.
    """
    found = {}
    for name, value in weights.items():
        if name.startswith("visual."):
            name = f"model.{name}"
        elif name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
            name = f"model.language_model.{name.removeprefix('model.')}"
        if name != "lm_head.weight":  # predicts the next token, which is not used
            found[name] = value
    return found


def _instruction(file: str) -> str:
    text = Path(file).read_text(encoding="utf-8") if Path(file).is_file() else ""
    if text.count(PROMPT) != 1 or text.count(REWARD) != 1:
        expected = f"a text file that holds {PROMPT} and {REWARD} once each (docs/rewards.md says where it is)"
        fail("hpsv3", "instruction", expected, repr(file))
    return text
