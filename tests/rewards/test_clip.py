"""CLIP, PickScore and the aesthetic score on a tiny CLIP model with random weights."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.image_processors import pil_processor
from support.tiny_rewards import NO_METADATA, TEXTS, as_pil, photographs
from torch import Tensor, nn

from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.pixels import clip_pixels


def cosines(model, directory: str, images: Tensor, texts: list[str]) -> Tensor:
    """What the library makes of images and texts, all in one call."""
    from transformers import AutoTokenizer

    processor = pil_processor("CLIP", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(images=as_pil(images), return_tensors="pt")["pixel_values"]
    tokens = AutoTokenizer.from_pretrained(directory)(
        texts, padding=True, truncation=True, max_length=20, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    return output.logits_per_image.diagonal().double() / model.logit_scale.exp().double()


@pytest.mark.parametrize(("name", "factor"), [("clip", 1.0), ("pickscore", 100 / 26)])
def test_clip_rewards_are_what_the_librarys_model_gives(clip, name, factor):
    model, directory = clip
    settings = {"model": directory, "batch_size": 2} | ({"tokenizer": directory} if name == "pickscore" else {})
    images = photographs(3, 48, 64)
    long = [TEXTS[0], TEXTS[1] * 9, TEXTS[2]]  # cut at the model's length
    scores = get_reward({name: settings})(images, long, NO_METADATA)
    expected = factor * cosines(model, directory, images, long)
    assert torch.allclose(scores, expected, atol=1e-4)
    assert scores.std() > 1e-3
    shared = get_reward({name: settings})(images, [long[1], long[0], long[1]], NO_METADATA)
    assert torch.allclose(shared, factor * cosines(model, directory, images, [long[1], long[0], long[1]]), atol=1e-4)
    for dtype in ("bfloat16", "float16"):
        half = get_reward({name: {**settings, "dtype": dtype}})(images, long, NO_METADATA)
        assert torch.allclose(half, scores, atol=0.1 * factor)
        assert not torch.equal(half, scores)


def test_the_aesthetic_score_is_its_head_on_an_embedding_of_length_one(clip, tmp_path):
    model, directory = clip
    torch.manual_seed(1)
    published = nn.Sequential(
        nn.Linear(24, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    ).eval()  # fmt: skip
    weights = {f"layers.{name}": value for name, value in published.state_dict().items()}
    save_file(weights, tmp_path / "head.safetensors")
    images = photographs(3, 40, 40)
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=clip_pixels(images, 32)).pooler_output
        expected = published(seen / seen.norm(dim=1, keepdim=True))[:, 0].double()
    reward = get_reward({"aesthetic": {"head": str(tmp_path / "head.safetensors"), "model": directory}})
    assert torch.allclose(reward(images, TEXTS, NO_METADATA), expected, atol=1e-5)
    for dtype in ("bfloat16", "float16"):
        half = get_reward(
            {"aesthetic": {"head": str(tmp_path / "head.safetensors"), "model": directory, "dtype": dtype}}
        )
        assert 0 < (half(images, TEXTS, NO_METADATA) - expected).abs().max() < 0.01
    save_file({**weights, "layers.7.bias": torch.zeros(2)}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"weights must be .*wide.safetensors: .*size mismatch for 7.bias"):
        get_reward({"aesthetic": {"head": str(tmp_path / "wide.safetensors"), "model": directory}})
    del weights["layers.7.bias"]
    save_file(weights, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"must be those of the module, got .*, without \['7.bias'\]"):
        get_reward({"aesthetic": {"head": str(tmp_path / "short.safetensors"), "model": directory}})


def test_an_unknown_dtype_is_refused(clip):
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, float32, got 'int8'"):
        get_reward({"clip": {"model": clip[1], "dtype": "int8"}})
    with pytest.raises(ValueError, match="reward must be one that loads, got clip: "):
        get_reward({"clip": {"model": clip[1] + "/nowhere"}})


def test_a_model_without_some_weights_is_refused(clip, tmp_path):
    shutil.copytree(clip[1], tmp_path / "clip")
    weights = load_file(tmp_path / "clip/model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "clip/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model must be one with all weights of CLIPModel, .* \['visual_projection"):
        get_reward({"clip": {"model": str(tmp_path / "clip")}})
