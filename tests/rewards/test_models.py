"""Rewards on models of transformers: preprocessing against the libraries' own, their classes with random weights."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from support import tiny_rewards
from support.tiny_rewards import as_pil, photographs
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from tempflow_fast.rewards import RewardError, get_reward
from tempflow_fast.rewards.pixels import CLIP_MEAN, CLIP_STD, as_bytes, clip_pixels
from tempflow_fast.rewards.resize import center_square, resized

TEXTS = ["a photo of a cow", "two red dogs", "a bus"]
NO_METADATA: list[dict] = [{}, {}, {}]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP model and where it lies."""
    directory = tmp_path_factory.mktemp("clip")
    return tiny_rewards.clip_model(directory), str(directory)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(24, 19), (97, 77), (61, 48), (200, 153)])
def test_resizing_is_pillows_to_the_bit(height, width, mode):
    import numpy as np
    from PIL import Image

    noise = torch.randint(0, 256, (2, 3, 61, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    got = resized(noise, height, width, mode)
    for image, expected in zip(got, as_pil(noise / 255), strict=True):
        expected = expected.resize((width, height), getattr(Image, mode.upper()))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 71), (40, 90), (24, 24), (3, 60)])
def test_clip_pixels_are_the_librarys(height, width):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = photographs(2, height, width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    expected = processor(images=as_pil(images), return_tensors="pt")["pixel_values"]
    assert (clip_pixels(images, 24) - expected).abs().max() < 1e-5


def test_a_sliver_is_resized_without_its_whole_length():
    sliver = as_bytes(photographs(1, 512, 1))
    assert center_square(sliver, 224).shape == (1, 3, 224, 224)  # 224 x 114688 in full


def test_blip_pixels_are_clips(clip):
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    images = photographs(2, 60, 60)
    processor = BlipImageProcessorPil(size={"height": 24, "width": 24})
    expected = processor(images=as_pil(images), return_tensors="pt")["pixel_values"]
    assert (clip_pixels(images, 24) - expected).abs().max() < 1e-5


def cosines(model, directory: str, images: Tensor, texts: list[str]) -> Tensor:
    """What the library makes of images and texts, all in one call."""
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
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
    torch.save(weights, tmp_path / "head.pth")
    images = photographs(3, 40, 40)
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=clip_pixels(images, 32)).pooler_output
        expected = published(seen / seen.norm(dim=1, keepdim=True))[:, 0].double()
    for file in ("head.safetensors", "head.pth"):
        reward = get_reward({"aesthetic": {"head": str(tmp_path / file), "model": directory}})
        assert torch.allclose(reward(images, TEXTS, NO_METADATA), expected, atol=1e-5)
    for dtype in ("bfloat16", "float16"):
        half = get_reward({"aesthetic": {"head": str(tmp_path / "head.pth"), "model": directory, "dtype": dtype}})
        assert 0 < (half(images, TEXTS, NO_METADATA) - expected).abs().max() < 0.01
    save_file({**weights, "layers.7.bias": torch.zeros(2)}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"wide.safetensors must fit, got .*size mismatch for 7.bias"):
        get_reward({"aesthetic": {"head": str(tmp_path / "wide.safetensors"), "model": directory}})
    del weights["layers.7.bias"]
    save_file(weights, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"must fit, got none for \['7.bias'\]"):
        get_reward({"aesthetic": {"head": str(tmp_path / "short.safetensors"), "model": directory}})


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
    reward = get_reward({"hpsv2": {"weights": str(tmp_path / "HPS.pt"), "model": str(home)}})
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
        half = get_reward({"hpsv2": {"weights": str(tmp_path / "HPS.pt"), "model": str(home), "dtype": dtype}})
        assert 0 < (half(images, TEXTS, NO_METADATA) - expected).abs().max() < 0.1
    del weights["visual.proj"]
    torch.save({"state_dict": weights}, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"must fit, got none for \['visual_projection.weight'\]"):
        get_reward({"hpsv2": {"weights": str(tmp_path / "short.pt"), "model": str(home)}})


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
    images = photographs(3, 40, 40)
    pixels = clip_pixels(images, 32)
    expected = blip_vision(weights, pixels, heads=2)
    assert torch.allclose(network.vision(pixel_values=pixels).last_hidden_state, expected, atol=1e-4)

    settings = {"weights": str(tmp_path / "IR.pt"), "tokenizer": str(tmp_path / "bert"), "batch_size": 2}
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


INSTRUCTION = "Rate this.\n{text_prompt}\nYour rating: <|Reward|>\nEND\n"


def as_the_authors_run_it(model, tokenizer, head: nn.Sequential, images: Tensor, texts: list[str]) -> Tensor:
    """HPS v3 on the library's processor and whole model, image by image: scores [R]."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(min_pixels=256 * 28 * 28, max_pixels=256 * 28 * 28)
    scores = []
    for image, text in zip(as_pil(images), texts, strict=True):
        seen = processor(images=[image], return_tensors="pt")
        words = "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * (int(seen.image_grid_thw.prod()) // 4)
        words += f"<|vision_end|>{INSTRUCTION.format(text_prompt=text)}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(words, return_tensors="pt").input_ids
        embedded = model.get_input_embeddings()(ids)
        embedded[ids == model.config.image_token_id] = model.visual(
            seen.pixel_values, grid_thw=seen.image_grid_thw
        ).pooler_output
        read = model(inputs_embeds=embedded, attention_mask=torch.ones_like(ids)).last_hidden_state
        scores.append(head(read[ids == tokenizer.convert_tokens_to_ids("<|Reward|>")])[0, 0])
    return torch.stack(scores).double()


@pytest.mark.filterwarnings("ignore:reward .* failed on")
@pytest.mark.parametrize("layout", ["new", "old"])
def test_hpsv3_reads_the_published_layout_and_the_instruction(tmp_path, layout):
    model, tokenizer = tiny_rewards.qwen2_vl(tmp_path / "qwen")
    torch.manual_seed(1)
    head = nn.Sequential(
        nn.Linear(32, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    ).eval()
    names = {"model.visual.": "visual.", "model.language_model.": "model."} if layout == "old" else {}
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    for new, old in names.items():
        weights = {name.replace(new, old, 1): value for name, value in weights.items()}
    weights |= {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    save_file({**weights, "lm_head.weight": torch.zeros(len(tokenizer), 32)}, tmp_path / "HPSv3.safetensors")
    (tmp_path / "instruction.txt").write_text(INSTRUCTION)
    settings = {"weights": str(tmp_path / "HPSv3.safetensors"), "model": str(tmp_path / "qwen")}
    settings |= {"instruction": str(tmp_path / "instruction.txt"), "batch_size": 2}
    texts = [TEXTS[0], TEXTS[1] * 5, TEXTS[2]]
    reward = get_reward({"hpsv3": {**settings, "dtype": "float32"}})
    for height, width in ((48, 64), (500, 520)):  # to 392 x 532, and to 420 x 448
        images = photographs(3, height, width)
        with torch.no_grad():
            expected = as_the_authors_run_it(model, tokenizer, head, images, texts)
        scores = reward(images, texts, NO_METADATA)
        assert torch.allclose(scores, expected, atol=1e-4)
        assert scores.std() > 1e-3
    for own, dtype in (({}, torch.bfloat16), ({"dtype": "float16"}, torch.float16)):
        half = get_reward({"hpsv3": {**settings, **own}})
        assert {value.dtype for value in half.rewards["hpsv3"].network.model.parameters()} == {dtype}
        assert 0 < (half(images, texts, NO_METADATA) - scores).abs().max() < 0.3 * scores.abs().max()
    with pytest.raises(RewardError, match=r"sample 2 .*prompt must not hold <.Reward.>"):
        reward(images, [*texts[:2], "a <|Reward|>"], NO_METADATA)


def test_hpsv3_pixels_are_the_librarys():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from tempflow_fast.rewards.hpsv3 import fitted, image_patches
    from tempflow_fast.rewards.pixels import normalized

    processor = Qwen2VLImageProcessorPil(min_pixels=256 * 28 * 28, max_pixels=256 * 28 * 28)
    for height, width in ((448, 448), (512, 512), (1024, 768), (30, 64), (300, 1400)):
        images = photographs(2, height, width)
        expected = processor(images=as_pil(images), return_tensors="pt")
        size = fitted(height, width, 28)
        assert expected["image_grid_thw"].tolist() == [[1, size[0] // 14, size[1] // 14]] * 2
        pixels = normalized(resized(as_bytes(images), *size).float() / 255, CLIP_MEAN, CLIP_STD)
        assert (image_patches(pixels, 14, 2, 2) - expected["pixel_values"]).abs().max() < 1e-5


def test_hpsv3_says_what_it_misses(tmp_path):
    for text in (None, "no place for anything", "{text_prompt} <|Reward|> <|Reward|>"):
        file = tmp_path / "instruction.txt"
        if text is not None:
            file.write_text(text)
        with pytest.raises(ValueError, match=r"instruction must be a text file that holds {text_prompt} and"):
            get_reward({"hpsv3": {"instruction": str(file), "batch_size": len(text or "")}})


def test_an_unknown_dtype_is_refused(clip):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        get_reward({"clip": {"model": clip[1], "dtype": "int8"}})
    with pytest.raises(ValueError, match="cannot make reward clip"):
        get_reward({"clip": {"model": clip[1] + "/nowhere"}})
