"""HPSv2 on a tiny model with random weights, against formulas of its published layout."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from support import tiny_rewards
from support.tiny_rewards import NO_METADATA, TEXTS, photographs
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from tempflow_fast.convert import convert
from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.pixels import CLIP_MEAN, CLIP_STD


def block(weights: dict[str, Tensor], stem: str, x: Tensor, heads: int, causal: bool) -> Tensor:
    """A pre-norm transformer block in the layout of open_clip."""

    def normed(part: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{stem}.{part}.weight"], weights[f"{stem}.{part}.bias"])

    def linear(part: str, x: Tensor, name: str = ".") -> Tensor:
        return x @ weights[f"{stem}.{part}{name}weight"].T + weights[f"{stem}.{part}{name}bias"]

    parts = linear("attn.in_proj", normed("ln_1", x), "_").chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    x = x + linear("attn.out_proj", scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))
    return x + linear("mlp.c_proj", gelu(linear("mlp.c_fc", normed("ln_2", x))))


def open_clip_cosines(weights: dict[str, Tensor], pixels: Tensor, tokens: Tensor, heads: int) -> Tensor:
    """CLIP written out in the layout of open_clip: cosines [R]."""

    def normed(stem: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{stem}.weight"], weights[f"{stem}.bias"])

    x = torch.conv2d(pixels, weights["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = normed("visual.ln_pre", x + weights["visual.positional_embedding"])
    for number in range(2):
        x = block(weights, f"visual.transformer.resblocks.{number}", x, heads, causal=False)
    seen = normed("visual.ln_post", x[:, 0]) @ weights["visual.proj"]
    x = weights["token_embedding.weight"][tokens] + weights["positional_embedding"][: tokens.shape[1]]
    for number in range(2):
        x = block(weights, f"transformer.resblocks.{number}", x, heads, causal=True)
    read = normed("ln_final", x)[torch.arange(len(x)), tokens.argmax(1)] @ weights["text_projection"]
    return torch.cosine_similarity(seen, read)


def open_clip_weights(width: int = 32, embedding: int = 24, words: int = 190) -> dict[str, Tensor]:
    """Random weights in the layout of open_clip."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "positional_embedding": (20, width),
        "text_projection": (width, embedding),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (17, width),
        "visual.proj": (width, embedding),
        "visual.conv1.weight": (width, 3, 8, 8),
        "token_embedding.weight": (words, width),
        **{
            f"{norm}.{part}": (width,)
            for norm in ("ln_final", "visual.ln_pre", "visual.ln_post")
            for part in ("weight", "bias")
        },
    }
    for tower in ("", "visual."):
        for number in range(2):
            stem = f"{tower}transformer.resblocks.{number}"
            shapes |= {f"{stem}.{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
            shapes |= {f"{stem}.attn.in_proj_weight": (3 * width, width), f"{stem}.attn.in_proj_bias": (3 * width,)}
            for part, (rows, columns) in {
                "attn.out_proj": (width, width),
                "mlp.c_fc": (64, width),
                "mlp.c_proj": (width, 64),
            }.items():
                shapes |= {f"{stem}.{part}.weight": (rows, columns), f"{stem}.{part}.bias": (rows,)}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_hpsv2_reads_the_published_layout_and_fits_images_into_black_squares(clip, tmp_path):
    import json

    model, _ = clip
    config = copy.deepcopy(model.config)
    config.text_config.hidden_act = config.vision_config.hidden_act = "gelu"  # as the published model has
    home = tmp_path / "clip"
    tokenizer = tiny_rewards.clip_tokenizer(home)
    config.save_pretrained(home)
    assert json.loads((home / "config.json").read_text())["vision_config"]["hidden_act"] == "gelu"
    weights = open_clip_weights(words=len(tokenizer))
    torch.save({"state_dict": {**weights, "attn_mask": torch.zeros(20, 20)}}, tmp_path / "HPS.pt")
    convert(str(tmp_path / "HPS.pt"), tmp_path / "HPS.safetensors")
    reward = get_reward({"hpsv2": {"weights": str(tmp_path / "HPS.safetensors"), "model": str(home)}})
    images = photographs(3, 20, 40)
    square = torch.zeros(3, 3, 40, 40)
    square[:, :, 10:30] = images
    fitted = torch.nn.functional.interpolate(square, (32, 32), mode="bicubic", antialias=True)
    pixels = (fitted - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    got = reward.rewards["hpsv2"].pixels(images)
    assert torch.allclose(got[:, :, 10:22], pixels[:, :, 10:22], atol=1e-4)  # away from the bars' edges
    assert torch.allclose(got[:, :, :8], pixels[:, :, :4].mean((2, 3), keepdim=True).expand(3, 3, 8, 32), atol=1e-4)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt").input_ids
    expected = open_clip_cosines(weights, got, tokens, heads=4).double()
    assert torch.allclose(reward(images, TEXTS, NO_METADATA), expected, atol=1e-4)
    assert expected.std() > 1e-3
    for dtype in ("bfloat16", "float16"):
        half = get_reward({"hpsv2": {"weights": str(tmp_path / "HPS.safetensors"), "model": str(home), "dtype": dtype}})
        assert 0 < (half(images, TEXTS, NO_METADATA) - expected).abs().max() < 0.1
    del weights["visual.proj"]
    save_file(weights, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"those of the module, got .*, without \['visual_projection.weight'\]"):
        get_reward({"hpsv2": {"weights": str(tmp_path / "short.safetensors"), "model": str(home)}})
