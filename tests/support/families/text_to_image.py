"""Pipelines from text to image."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler as Scheduler

from support.families import parts
from support.pipelines import AXES, HEAD_DIM, TEXT_DIM, clip_config, clip_tokenizer, t5, vae


def aura_flow(directory: Path):
    tokenizer = clip_tokenizer(directory)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=2,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=2 * HEAD_DIM,
        pos_embed_max_size=256,
    )
    with torch.no_grad():  # the text reaches the image through two gates that are multiples of this, without a bias
        transformer.time_step_proj.linear_2.weight *= 20
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=parts.umt5(tokenizer),
        vae=vae(),
        transformer=transformer,
        scheduler=Scheduler(shift=1.73),
    )


def chroma(directory: Path):
    tokenizer = clip_tokenizer(directory)
    return diffusers.ChromaPipeline(
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=t5(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=AXES,
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
    )


def ovis_image(directory: Path):
    tokenizer = parts.chat_tokenizer()
    return diffusers.OvisImagePipeline(
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=parts.qwen3(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=AXES,
        ),
    )


def cogview4(directory: Path):
    tokenizer = clip_tokenizer(directory)
    config = transformers.GlmConfig(**parts.language(tokenizer), head_dim=16, pad_token_id=tokenizer.pad_token_id)
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.GlmModel(config),
        vae=vae(),
        transformer=diffusers.CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            text_embed_dim=TEXT_DIM,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=16,
            sample_size=8,
            rope_axes_dim=(16, 16),
        ),
        scheduler=Scheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )


def lumina2(directory: Path):
    tokenizer = clip_tokenizer(directory)
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=2 * HEAD_DIM,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=AXES,
            axes_lens=(600, 64, 64),
            cap_feat_dim=TEXT_DIM,
        ),
        scheduler=Scheduler(shift=6.0),
        vae=vae(num_blocks=4),  # the pipeline counts on 8 pixels a latent
        text_encoder=parts.gemma2(tokenizer),
        tokenizer=tokenizer,
    )


def z_image(directory: Path):
    tokenizer = parts.chat_tokenizer()
    return diffusers.ZImagePipeline(
        scheduler=Scheduler(shift=3.0),
        vae=vae(),
        text_encoder=parts.qwen3(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=2 * HEAD_DIM,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=TEXT_DIM,
            axes_dims=list(AXES),
            axes_lens=[1024, 64, 64],
        ),
    )


def krea2(directory: Path, is_distilled: bool = False):
    tokenizer = parts.chat_tokenizer()
    return diffusers.Krea2Pipeline(
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen3_vl(tokenizer).model,
        tokenizer=tokenizer,
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=TEXT_DIM,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=AXES,
        ),
        text_encoder_select_layers=(1, 2),
        is_distilled=is_distilled,
    )


def flux2(directory: Path):
    return diffusers.Flux2Pipeline(
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=parts.flux2_vae(),
        text_encoder=parts.mistral3(),
        tokenizer=parts.qwen2_vl_processor(parts.chat_tokenizer()),
        transformer=flux2_transformer(3 * TEXT_DIM, True),
    )


def flux2_klein(directory: Path):
    tokenizer = parts.chat_tokenizer()
    return diffusers.Flux2KleinPipeline(
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=parts.flux2_vae(),
        text_encoder=transformers.Qwen3ForCausalLM(parts.qwen3_config(tokenizer)),
        tokenizer=tokenizer,
        transformer=flux2_transformer(3 * TEXT_DIM, False),
    )


def flux2_transformer(text: int, guidance_embeds: bool):
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=2,
        joint_attention_dim=text,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def prx(directory: Path):
    tokenizer = clip_tokenizer(directory)
    module = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_DIM,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    config = transformers.T5GemmaConfig(encoder=module, decoder=module, is_encoder_decoder=False)
    return diffusers.PRXPipeline(
        transformer=diffusers.PRXTransformer2DModel(
            in_channels=4,
            context_in_dim=TEXT_DIM,
            hidden_size=32,
            mlp_ratio=2.0,
            num_heads=2,
            depth=2,
            axes_dim=[8, 8],
        ),
        scheduler=Scheduler(shift=3.0),
        text_encoder=T5GemmaEncoder(config.encoder),
        tokenizer=tokenizer,
        vae=vae(),
        default_sample_size=16,
    )


def ernie_image(directory: Path):
    tokenizer = parts.chat_tokenizer()
    return diffusers.ErnieImagePipeline(
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=2 * HEAD_DIM,
            num_attention_heads=2,
            num_layers=1,
            ffn_hidden_size=32,
            in_channels=16,
            out_channels=16,
            text_in_dim=TEXT_DIM,
            rope_axes_dim=AXES,
        ),
        vae=parts.flux2_vae(),
        text_encoder=parts.mistral3().model,
        tokenizer=tokenizer,
        scheduler=Scheduler(shift=4.0),
    )


def nucleusmoe_image(directory: Path):
    tokenizer = parts.chat_tokenizer()
    return diffusers.NucleusMoEImagePipeline(
        transformer=diffusers.NucleusMoEImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=AXES,
            num_experts=2,
            moe_intermediate_dim=16,
            capacity_factors=2.0,
        ),
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen3_vl(tokenizer, num_layers=8),
        processor=parts.qwen3_vl_processor(tokenizer),
    )


def longcat_image(directory: Path):
    tokenizer = parts.chat_tokenizer()
    return diffusers.LongCatImagePipeline(
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=vae(latent_channels=16),  # a number in the pipeline's code
        text_encoder=parts.qwen2_5_vl(tokenizer),
        tokenizer=tokenizer,
        text_processor=parts.qwen2_vl_processor(tokenizer),
        transformer=diffusers.LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            pooled_projection_dim=TEXT_DIM,
            axes_dims_rope=AXES,
        ),
    )


def bria(directory: Path):
    tokenizer = clip_tokenizer(directory)
    return diffusers.BriaPipeline(
        transformer=diffusers.BriaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=list(AXES),
        ),
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=vae(),
        text_encoder=t5(tokenizer),
        tokenizer=tokenizer,
    )


def bria_fibo(directory: Path):
    tokenizer = parts.chat_tokenizer()
    # The pipeline starts an empty prompt with this token of Llama 3.
    config = transformers.SmolLM3Config(**{**parts.language(tokenizer), "vocab_size": 128_001}, pad_token_id=0)
    return diffusers.BriaFiboPipeline(
        transformer=diffusers.BriaFiboTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=2,
            joint_attention_dim=2 * TEXT_DIM,
            text_encoder_dim=TEXT_DIM,
            axes_dims_rope=list(AXES),
        ),
        scheduler=Scheduler(use_dynamic_shifting=True),
        vae=parts.fibo_vae(),
        text_encoder=transformers.SmolLM3ForCausalLM(config),
        tokenizer=tokenizer,
    )


def sana(directory: Path):
    tokenizer = clip_tokenizer(directory)
    return diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=parts.gemma2(tokenizer),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=TEXT_DIM,
            sample_size=8,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(**parts.FLOW),
    )


def kandinsky5(directory: Path):
    tokenizer = parts.chat_tokenizer()
    clip = clip_tokenizer(directory)
    clip.model_max_length = 77
    pipeline = diffusers.Kandinsky5T2IPipeline(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=TEXT_DIM,
            in_text_dim2=16,
            time_dim=16,
            out_visual_dim=4,
            model_dim=2 * HEAD_DIM,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=AXES,
        ),
        vae=vae(num_blocks=4),  # the pipeline counts on 8 pixels a latent
        text_encoder=parts.qwen2_5_vl(tokenizer),
        tokenizer=parts.qwen2_vl_processor(tokenizer),
        text_encoder_2=transformers.CLIPTextModel(clip_config(clip)),
        tokenizer_2=clip,
        scheduler=Scheduler(shift=5.0),
    )
    pipeline.resolutions = [(16, 16), (16, 32), (32, 32), (32, 64)]
    return pipeline
