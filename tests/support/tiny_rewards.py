"""Tiny random models of the classes that rewards load, saved as their libraries save them. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

TEXTS = ["a photo of a cow", "two red dogs", "a bus"]
NO_METADATA: list[dict] = [{}, {}, {}]

WORDS = ["a", "photo", "of", "red", "blue", "cow", "bus", "object", "colored", "-", "two", "dogs"]


def clip_model(directory: Path, image_size: int = 32):
    """A random `CLIPModel` with its tokenizer, saved to `directory`; returns it."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = clip_tokenizer(directory)
    config = CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": len(tokens),
            "max_position_embeddings": 20,
            "eos_token_id": tokens.eos_token_id,
            "bos_token_id": tokens.bos_token_id,
        },
        vision_config={**sizes, "image_size": image_size, "patch_size": 8},
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.logit_scale.data.fill_(4.6052)
    model.save_pretrained(directory)
    return model


def clip_tokenizer(directory: Path):
    """CLIP's kind of tokenizer over letters, saved to `directory`."""
    import json

    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({entry: place for place, entry in enumerate(entries)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return tokenizer


def detector(directory: Path):
    """A random `Mask2FormerForUniversalSegmentation` of 80 classes with a Swin backbone, saved to `directory`."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, num_labels=80, num_queries=12, hidden_dim=32, feature_size=32, mask_feature_size=32,
        dim_feedforward=32, encoder_feedforward_dim=32, num_attention_heads=2, encoder_layers=1, decoder_layers=2,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config).eval()
    model.class_predictor.weight.data.normal_(std=1.5)
    decoder = model.model.transformer_module
    # transformers 5.0 starts these near zero, so that rounding decides which pixels belong to a mask.
    for part in (*decoder.children(), *decoder.decoder.mask_predictor.modules()):
        if isinstance(part, torch.nn.Embedding | torch.nn.Linear):
            part.reset_parameters()
    model.save_pretrained(directory)
    return model


def qwen2_vl(directory: Path):
    """A random `Qwen2VLModel` and a tokenizer of single bytes with Qwen2-VL's way of asking, its settings saved.

    The tokenizer returned knows one token more than is saved, `<|Reward|>`, and so does the model.
    """
    from transformers import Qwen2VLConfig, Qwen2VLModel

    from support.pipelines import byte_tokenizer

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]})
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    tokenizer.save_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1000000.0},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=image_token)
    model = Qwen2VLModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    config.text_config.vocab_size = len(tokenizer) + 100  # the published one has room to spare
    config.save_pretrained(directory)
    return model, tokenizer


def photographs(num: int = 3, height: int = 48, width: int = 48, seed: int = 0) -> Tensor:
    """Smooth random images [num, 3, height, width] of 256 levels, as a file would hold them."""
    noise = torch.rand(num, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
    return smooth.clamp(0, 1).mul(255).round() / 255


def as_pil(images: Tensor) -> list:
    """The images as Pillow has them."""
    from PIL import Image

    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
