"""HPSv3 on a tiny model with random weights, against the authors' procedure."""

import pytest
import torch
from safetensors.torch import save_file
from support import tiny_rewards
from support.image_processors import pil_processor
from support.tiny_rewards import NO_METADATA, TEXTS, as_pil, photographs
from torch import Tensor, nn

from tempflow_fast.rewards import RewardError, get_reward
from tempflow_fast.rewards.pixels import CLIP_MEAN, CLIP_STD, as_bytes
from tempflow_fast.rewards.resize import resized

INSTRUCTION = "Rate this.\n{text_prompt}\nYour rating: <|Reward|>\nEND\n"


def as_the_authors_run_it(model, tokenizer, head: nn.Sequential, images: Tensor, texts: list[str]) -> Tensor:
    """HPS v3 on the library's processor and whole model, image by image: scores [R]."""
    processor = pil_processor("Qwen2VL", min_pixels=256 * 28 * 28, max_pixels=256 * 28 * 28)
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


@pytest.mark.slow
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
    with pytest.raises(RewardError, match=r"sample 2 .*prompt must be without <.Reward.>"):
        reward(images, [*texts[:2], "a <|Reward|>"], NO_METADATA)


def test_hpsv3_pixels_are_the_librarys():
    from tempflow_fast.rewards.hpsv3 import fitted, image_patches
    from tempflow_fast.rewards.pixels import normalized

    processor = pil_processor("Qwen2VL", min_pixels=256 * 28 * 28, max_pixels=256 * 28 * 28)
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
