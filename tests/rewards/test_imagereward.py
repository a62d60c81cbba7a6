"""ImageReward on a tiny model with random weights, against formulas of its published layout."""

import torch
from support import tiny_rewards
from support.tiny_rewards import NO_METADATA, TEXTS, photographs
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from tempflow_fast.convert import convert
from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.pixels import clip_pixels


def blip_vision(weights: dict[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """BLIP's image encoder written out in its first layout: [R, 1 + patches, width]."""
    stem = "blip.visual_encoder"

    def linear(part: str, x: Tensor) -> Tensor:
        return x @ weights[f"{stem}.{part}.weight"].T + weights[f"{stem}.{part}.bias"]

    def normed(part: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{stem}.{part}.weight"], weights[f"{stem}.{part}.bias"], eps=1e-6)

    patches = {part: weights[f"{stem}.patch_embed.proj.{part}"] for part in ("weight", "bias")}
    x = torch.conv2d(pixels, **patches, stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([weights[f"{stem}.cls_token"].expand(len(x), 1, -1), x], dim=1) + weights[f"{stem}.pos_embed"]
    for number in range(2):
        block = f"blocks.{number}"
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in linear(f"{block}.attn.qkv", normed(f"{block}.norm1", x)).chunk(3, dim=-1)
        )
        seen = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(f"{block}.attn.proj", seen)
        x = x + linear(f"{block}.mlp.fc2", gelu(linear(f"{block}.mlp.fc1", normed(f"{block}.norm2", x))))
    return normed("norm", x)


def published_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `BlipScorer` under the names of the published file."""
    changes = {
        "vision.embeddings.class_embedding": "blip.visual_encoder.cls_token",
        "vision.embeddings.position_embedding": "blip.visual_encoder.pos_embed",
        "vision.embeddings.patch_embedding.": "blip.visual_encoder.patch_embed.proj.",
        "vision.post_layernorm.": "blip.visual_encoder.norm.",
        "vision.encoder.layers.": "blip.visual_encoder.blocks.",
        "self_attn.projection": "attn.proj",
        "self_attn.qkv": "attn.qkv",
        "layer_norm": "norm",
        "text.": "blip.text_encoder.",
        "head.": "mlp.layers.",
    }
    found = {}
    for name, value in weights.items():
        for new, old in changes.items():
            name = name.replace(new, old) if new != "text." or name.startswith("text.") else name
        found[name] = value
    return found


def test_imagereward_reads_the_published_layout_and_looks_at_image_and_prompt(tmp_path):
    from transformers import BertTokenizer

    from tempflow_fast.rewards.imagereward import DEVIATION, MEAN, BlipScorer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *tiny_rewards.WORDS]) + "\n")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    vision = {"image_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    network = BlipScorer(vision, text).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(std=0.3)
    weights = published_names(network.state_dict())
    assert all(name.startswith(("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers.")) for name in weights)
    torch.save({**weights, "blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}, tmp_path / "IR.pt")
    convert(str(tmp_path / "IR.pt"), tmp_path / "IR.safetensors")
    images = photographs(3, 40, 40)
    pixels = clip_pixels(images, 32)
    expected = blip_vision(weights, pixels, heads=2)
    assert torch.allclose(network.vision(pixel_values=pixels).last_hidden_state, expected, atol=1e-4)

    settings = {"weights": str(tmp_path / "IR.safetensors"), "tokenizer": str(tmp_path / "bert"), "batch_size": 2}
    reward = get_reward({"imagereward": {**settings, "vision": vision, "text": text}})
    scores = reward(images, TEXTS, NO_METADATA)
    tokens = BertTokenizer.from_pretrained(tmp_path / "bert")(TEXTS, padding=True, return_tensors="pt")
    raw = network(pixels, tokens["input_ids"], tokens["attention_mask"])
    assert torch.allclose(scores, ((raw - MEAN) / DEVIATION).double(), atol=1e-4)
    assert not torch.allclose(reward(images.flip(0), TEXTS, NO_METADATA), scores, atol=1e-3)
    assert not torch.allclose(reward(images, TEXTS[::-1], NO_METADATA), scores, atol=1e-3)
    for dtype in ("bfloat16", "float16"):
        half = get_reward({"imagereward": {**settings, "vision": vision, "text": text, "dtype": dtype}})
        assert 0 < (half(images, TEXTS, NO_METADATA) - scores).abs().max() < 0.1 * scores.abs().max()
