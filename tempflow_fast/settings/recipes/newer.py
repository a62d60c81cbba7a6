"""FLUX.2 and Z-Image: Flow-Factory's settings of these models, with the branches of the TempFlow-GRPO scripts."""

from __future__ import annotations

from typing import Any

from ..run import TrainConfig
from .adapters import ATTENTION, linear_pair
from .qwen_image import qwen_image_pickscore

FLUX2 = (*ATTENTION, "attn.to_qkv_mlp_proj", *linear_pair("ff"), *linear_pair("ff_context"))
Z_IMAGE = (
    *(f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
)


def flux2_pickscore() -> TrainConfig:
    """FLUX.2-dev with LoRA on PickScore: 48 prompts x 4 seeds x 6 branches at 7 of 8 steps, 512 px, guidance 4.

    Prompts: lines of text, a training and a test file as in dataset/pickscore of the Flow-GRPO repository.
    Source: ours, not run: Flow-Factory's settings of the model, value by value in docs/recipes.md.
    """
    return _newer("black-forest-labs/FLUX.2-dev", FLUX2, num_steps=8, noise_level=1.0, eval_steps=28, max_batch=6)


def flux2_klein_pickscore() -> TrainConfig:
    """FLUX.2-klein-base-4B with LoRA on PickScore: as flux2-pickscore, with classifier-free guidance.

    Prompts: lines of text, a training and a test file as in dataset/pickscore of the Flow-GRPO repository.
    Source: ours, not run: Flow-Factory's settings of the model, value by value in docs/recipes.md.
    """
    return _newer("black-forest-labs/FLUX.2-klein-base-4B", FLUX2, num_steps=8, noise_level=0.7, eval_steps=28)


def z_image_pickscore() -> TrainConfig:
    """Z-Image with LoRA on PickScore: 48 prompts x 4 seeds x 6 branches, 512 px, guidance 5 (4 in the pipeline).

    Prompts: lines of text, a training and a test file as in dataset/pickscore of the Flow-GRPO repository.
    Source: ours, not run: Flow-Factory's settings of the model, value by value in docs/recipes.md.
    """
    model = {"guidance_scale": 5.0, "noise_level": 0.7, "eval_steps": 40, "eval_every": 40}
    return _newer("Tongyi-MAI/Z-Image", Z_IMAGE, **model)


def _newer(model: str, targets: tuple[str, ...], **settings: Any) -> TrainConfig:
    return qwen_image_pickscore().with_settings(model=model, lora_targets=targets, ema_decay=0.9, **settings)
