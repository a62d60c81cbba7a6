"""Pipelines that edit an image, and images for them."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import diffusers
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler as Scheduler
from PIL import Image

from support.families import parts
from support.pipelines import AXES, HEAD_DIM, TEXT_DIM, clip_config, clip_tokenizer, t5, vae


def painted(directory: Path, name: object, size: tuple[int, int] = (64, 64), seed: int = 0) -> str:
    """A file with random pixels."""
    path = directory / f"{name}.png"
    Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1])).save(path)
    return str(path)


def shrink_sources(monkeypatch) -> None:
    """Pipelines that resize every source image to about a million pixels resize it to about four thousand."""
    from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    sizes = [(width // 16, height // 16) for width, height in kontext.PREFERRED_KONTEXT_RESOLUTIONS]
    monkeypatch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", sizes)
    for module in (edit, plus):
        smaller = partial(_smaller, module.calculate_dimensions)
        monkeypatch.setattr(module, "calculate_dimensions", smaller)


def _smaller(own, area: int, ratio: float):
    return own(max(area // 256, 1024), ratio)


def flux_kontext(directory: Path, guidance_embeds: bool = True):
    tokenizer = clip_tokenizer(directory)
    return diffusers.FluxKontextPipeline(
        scheduler=Scheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=transformers.CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=t5(tokenizer),
        tokenizer_2=tokenizer,
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=AXES,
        ),
    )


def qwen_image_edit(directory: Path, plus: bool = False):
    tokenizer = parts.chat_tokenizer()
    kind = diffusers.QwenImageEditPlusPipeline if plus else diffusers.QwenImageEditPipeline
    return kind(
        scheduler=Scheduler(use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen2_5_vl(tokenizer),
        tokenizer=tokenizer,
        processor=parts.qwen2_vl_processor(tokenizer),
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=AXES,
        ),
    )
