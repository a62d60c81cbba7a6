"""Pipelines from text, or from an image and text, to video."""

from __future__ import annotations

from pathlib import Path

import diffusers
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler as Scheduler

from support.families import parts
from support.image_processors import pil_processor
from support.pipelines import TEXT_DIM, clip_tokenizer, t5


def wan(directory: Path):
    return diffusers.WanPipeline(**_wan_parts(directory))


def wan_image_to_video(directory: Path):
    """As Wan 2.1: the first frame is seen by the network, next to the latents' channels, and by an image encoder."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    size = {"height": vision.image_size, "width": vision.image_size}
    return diffusers.WanImageToVideoPipeline(
        **_wan_parts(directory, in_channels=36, image_dim=vision.hidden_size, added_kv_proj_dim=24),
        image_encoder=transformers.CLIPVisionModel(vision),
        image_processor=pil_processor("CLIP", size=size, crop_size=size),
    )


def _wan_parts(directory: Path, **network):
    tokenizer = clip_tokenizer(directory)
    return {
        "tokenizer": tokenizer,
        "text_encoder": parts.umt5(tokenizer),
        "vae": parts.wan_vae(),
        "scheduler": diffusers.UniPCMultistepScheduler(**parts.FLOW),
        "transformer": diffusers.WanTransformer3DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 16,
                "out_channels": 16,
                "text_dim": TEXT_DIM,
                "freq_dim": 32,
                "ffn_dim": 32,
                "num_layers": 1,
                "rope_max_seq_len": 32,
                **network,
            }
        ),
    }


def ltx(directory: Path):
    tokenizer = clip_tokenizer(directory)
    return diffusers.LTXPipeline(
        scheduler=Scheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
        ),
        text_encoder=t5(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=TEXT_DIM,
        ),
    )
