"""Text encoders, tokenizers, processors and VAEs of tiny random pipelines."""

from __future__ import annotations

import diffusers
import torch
import transformers

from support.image_processors import pil_processor
from support.pipelines import TEXT_DIM, byte_tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
"""Settings with which a scheduler of higher order has the noise levels of a flow."""
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1000000.0}


def language(tokenizer) -> dict:
    """Settings that the language models have in common."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_DIM,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
    }


def umt5(tokenizer):
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return transformers.UMT5EncoderModel(config)


def gemma2(tokenizer):
    config = transformers.Gemma2Config(**language(tokenizer), head_dim=16, query_pre_attn_scalar=16, sliding_window=16)
    return transformers.Gemma2Model(config)


def qwen3_config(tokenizer):
    return transformers.Qwen3Config(**{**language(tokenizer), "num_hidden_layers": 28}, head_dim=16)


def qwen3(tokenizer):
    return transformers.Qwen3Model(transformers.Qwen3Config(**language(tokenizer), head_dim=16))


def qwen3_vl(tokenizer, num_layers: int = 2):
    text = {**language(tokenizer), "num_hidden_layers": num_layers, "head_dim": 16, "rope_parameters": ROPE}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT_DIM,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [],
    }
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **image_tokens(tokenizer))
    return transformers.Qwen3VLForConditionalGeneration(config)


def qwen2_5_vl(tokenizer):
    text = {**language(tokenizer), "rope_parameters": ROPE}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": TEXT_DIM,
        "fullatt_block_indexes": [0],
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **image_tokens(tokenizer))
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def image_tokens(tokenizer) -> dict:
    return {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{word}|>")
        for name, word in (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"))
    }


def chat_tokenizer():
    """A Qwen tokenizer of single bytes with a chat template and the marks of images."""
    tokenizer = byte_tokenizer()
    words = ["image_pad", "video_pad", "vision_start", "vision_end", "object_ref_start"]
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{word}|>" for word in words]})
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen2_vl_processor(tokenizer):
    return without_videos(transformers.Qwen2VLProcessor, tokenizer, qwen_images())


def qwen3_vl_processor(tokenizer):
    return without_videos(transformers.Qwen3VLProcessor, tokenizer, qwen_images())


def qwen_images():
    return pil_processor("Qwen2VL", min_pixels=28 * 28, max_pixels=56 * 56)


def without_videos(kind, tokenizer, images, **attributes):
    """A processor of texts and images: the part for videos needs torchvision, which the tests do without."""
    made = kind.__new__(kind)
    made.tokenizer, made.image_processor, made.video_processor = tokenizer, images, None
    made.chat_template = CHAT
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    made.image_token_id, made.video_token_id = tokenizer.convert_tokens_to_ids([made.image_token, made.video_token])
    vars(made).update(attributes)
    return made


def mistral3():
    tokenizer = chat_tokenizer()
    text = {**language(tokenizer), "num_hidden_layers": 31, "head_dim": 16, "model_type": "mistral"}
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=5)
    )


def qwen_vae():
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.2, 0.8, 1.0, 1.5],
    )


def wan_vae():
    return diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def fibo_vae():
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1] * 5,  # the pipeline counts on 16 pixels a latent
        num_res_blocks=1,
        temperal_downsample=[False] * 4,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.2, 0.8, 1.0, 1.5],
    )


def flux2_vae():
    made = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    torch.nn.init.uniform_(made.bn.running_mean, -0.2, 0.2)
    torch.nn.init.uniform_(made.bn.running_var, 0.5, 2.0)
    return made


def without_zeros(network: torch.nn.Module) -> None:
    """Fills the weights that start at zero: a network that answers zero would agree with everything."""
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.uniform_(-0.2, 0.2)
