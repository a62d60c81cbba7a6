"""Small random policies for the tests: one in a few lines, one through diffusers. Nothing is downloaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tempflow_fast.policies import Condition

PROMPTS = ["a red circle", "two blue squares", "a green cross above a circle"]


class TinyPolicy:
    """A `Policy` with a two-layer perceptron; `calls` notes the rows of every call and whether it keeps a graph."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0, width: int = 16) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.latent_shape, self.dtype, self.device = (3, 2, 2), dtype, torch.device("cpu")
        self.network: nn.Module = nn.Sequential(nn.Linear(12 + 1 + 4, width), nn.Tanh(), nn.Linear(width, 12)).to(dtype)
        for parameter in self.network.parameters():
            parameter.data = (0.5 * torch.randn(parameter.shape, generator=generator)).to(dtype)
        self._frozen: nn.Module | None = None
        self._is_reference = False
        self.calls: list[tuple[int, bool]] = []

    def encode(self, prompts: Sequence[str], guided: bool = False) -> Condition:
        rows = [torch.randn(4, generator=torch.Generator().manual_seed(len(prompt))) for prompt in prompts]
        return Condition({"text": torch.stack(rows).to(self.dtype)})

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        self.calls.append((len(latents), torch.is_grad_enabled()))
        text = condition.tensors["text"]
        sigma = torch.as_tensor(sigma, dtype=self.dtype, device=latents.device).expand(len(latents))[:, None]
        flat = latents.flatten(1).to(self.dtype)
        texts = (text,) if guidance_scale == 1.0 else (text, 0 * text)
        network = self._frozen if self._is_reference else self.network
        outputs = [network(torch.cat([flat, sigma, words], dim=1)) for words in texts]
        velocities = [output.to(latents.dtype).view_as(latents) for output in outputs]
        return velocities[0], velocities[1] if len(velocities) == 2 else None

    def decode(self, latents: Tensor) -> Tensor:
        return latents.sigmoid().float()

    def sigmas(self, num_steps: int) -> list[float]:
        return [1 - i / num_steps for i in range(num_steps + 1)]

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.freeze_reference()
        self._is_reference = True
        yield
        self._is_reference = False

    def freeze_reference(self) -> None:
        self._frozen = self._frozen or copy.deepcopy(self.network).requires_grad_(False)

    def save(self, directory: str | Path) -> None:
        raise NotImplementedError


def brightness(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict]) -> Tensor:
    """A reward with a spread: the red channel against the others."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def sd3_pipeline(directory: Path, shift: float = 3.0, with_t5: bool = False, **scheduler):
    """A random `StableDiffusion3Pipeline` of 16x16 images, built from the library's own classes."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = _tokenizer(directory)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, **scheduler),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5) if with_t5 else None,
        tokenizer_3=tokenizer if with_t5 else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _tokenizer(directory: Path):
    """A CLIP tokenizer of single letters, loaded from files as a released one is."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(directory, model_max_length=40)
