"""Stable Diffusion 3 and 3.5, and every model stored in diffusers' `StableDiffusion3Pipeline` layout."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from .base import Condition

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

# One SD3.5 prompt takes 1.7 MB in bf16 (205 tokens of 4096), so the cache stays below 2 GB.
NUM_CACHED_PROMPTS = 1024
ALIGNMENT = 64  # bytes; what PyTorch's own allocators give


class SD3Policy:
    """A `Policy` on a diffusers `StableDiffusion3Pipeline`: its transformer is trained, its other parts are frozen.

    The rollout without branches is the pipeline's own sampler: same text encoding, timesteps, Euler steps and decoding.
    A pipeline without T5 (`text_encoder_3` None) gets no T5 tokens, which diffusers calls `max_sequence_length=0`; its
    default of 256 would append 256 zero tokens to every text.

    Args:
        pipeline: the loaded pipeline, on the device and in the precision to use; the VAE is moved to float32, because
            images decoded in 16 bits show bands.
        resolution: side of the square images in pixels; None: the size that the transformer was trained for.
        max_text_length: number of T5 tokens (77 CLIP tokens come on top).

    Raises:
        ValueError: if the resolution is not a multiple of the pixels that one patch covers.
    """

    def __init__(
        self, pipeline: StableDiffusion3Pipeline, resolution: int | None = None, max_text_length: int = 128
    ) -> None:
        self.pipeline = pipeline
        self.latent_shape = _latent_shape(pipeline, resolution)
        self._max_text_length = max_text_length if pipeline.text_encoder_3 is not None else 0
        if pipeline.vae.dtype != torch.float32:
            pipeline.vae.to(torch.float32)
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
            if part is not None:
                _aligned(part.requires_grad_(False).eval())
        self.network: nn.Module = _aligned(pipeline.transformer.requires_grad_(True).eval())
        self._frozen: nn.Module | None = None
        self._is_reference = False
        self._encoding = lru_cache(maxsize=NUM_CACHED_PROMPTS)(self._encode_one)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        max_text_length: int = 128,
    ) -> SD3Policy:
        """Loads a pipeline directory or Hugging Face repository; needs diffusers and transformers."""
        from diffusers import StableDiffusion3Pipeline

        # A model_index.json that says null still makes diffusers ask for the part; only an explicit None is taken.
        parts = StableDiffusion3Pipeline.load_config(str(path))
        absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if parts.get(name, [None])[0] is None}
        dtypes = {"default": dtype, "vae": torch.float32}
        pipeline = StableDiffusion3Pipeline.from_pretrained(str(path), dtype=dtypes, **absent)
        return cls(pipeline.to(device), resolution, max_text_length)

    @property
    def device(self) -> torch.device:
        """Where the transformer lives."""
        return self.pipeline.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the transformer."""
        return self.pipeline.transformer.dtype

    def encode(self, prompts: Sequence[str], guided: bool = False) -> Condition:
        """Text [P, L, C] and pooled text [P, C'], encoded once per prompt and kept.

        With `guided` the rows are pairs (prompt, empty prompt), [P, 2, ...]: flattened, a slice of them is the input of
        one network call for both, without a copy.
        """
        if not len(prompts):
            raise ValueError("encode: prompts must hold at least one text, got none")
        text, pooled = (torch.stack(part) for part in zip(*map(self._encoding, prompts), strict=True))
        if guided:
            empty_text, empty_pooled = self._encoding("")
            text = torch.stack([text, empty_text.expand_as(text)], dim=1)
            pooled = torch.stack([pooled, empty_pooled.expand_as(pooled)], dim=1)
        return Condition({"text": text, "pooled": pooled})

    @torch.no_grad()
    def _encode_one(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Text [L, C] and pooled text [C']. One prompt per call, so that its bits do not depend on its neighbours."""
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompt,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_text_length,
        )
        return text[0].to(self.dtype), pooled[0].to(self.dtype)

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity of latents [R, C, H, W] at sigma (float or [R]): (conditional, unconditional or None).

        Raises:
            ValueError: if guidance_scale is not 1 and the condition was encoded without guidance.
        """
        guided = guidance_scale != 1.0
        text, pooled = condition.tensors["text"], condition.tensors["pooled"]
        has_pairs = text.dim() == 4
        if guided and not has_pairs:
            raise ValueError(
                "velocity: condition must come from encode(prompts, guided=True) for guidance, got an unguided one"
            )
        if not isinstance(sigma, Tensor):
            sigma = torch.full((len(latents),), sigma, device=latents.device)
        hidden, timestep = latents.to(self.dtype), sigma.float() * self._num_train_timesteps
        if guided:
            hidden, timestep = hidden.repeat_interleave(2, dim=0), timestep.repeat_interleave(2)
            text, pooled = text.flatten(0, 1), pooled.flatten(0, 1)
        elif has_pairs:
            text, pooled = text[:, 0], pooled[:, 0]
        network = self._frozen if self._is_reference else self.network
        velocity = network(
            hidden_states=hidden,
            timestep=timestep,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        # Unpatchifying leaves a permuted view where patches are single pixels; the ops want rows of neighbours.
        velocity = velocity.to(latents.dtype).contiguous()
        return (velocity[0::2], velocity[1::2]) if guided else (velocity, None)

    @property
    def _num_train_timesteps(self) -> int:
        return self.pipeline.scheduler.config.num_train_timesteps

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [R, 3, H, W], float32 in [0, 1]."""
        vae = self.pipeline.vae
        unscaled = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return self.pipeline.image_processor.postprocess(vae.decode(unscaled, return_dict=False)[0], output_type="pt")

    def sigmas(self, num_steps: int) -> list[float]:
        """The T + 1 sigmas of the pipeline's scheduler, with its (static or resolution-dependent) shift."""
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        config = self.pipeline.scheduler.config
        scheduler = type(self.pipeline.scheduler).from_config(config)
        shift = {}
        if config.use_dynamic_shifting:
            _, height, width = self.latent_shape
            patch_size = self.pipeline.transformer.config.patch_size
            tokens = (height // patch_size) * (width // patch_size)
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            shift["mu"] = calculate_shift(tokens, *(config[name] for name in names))
        scheduler.set_timesteps(num_steps, **shift)
        return scheduler.sigmas.tolist()

    def parameters(self) -> list[Parameter]:
        """The trainable parameters of the network."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """`velocity` with the frozen weights."""
        self.freeze_reference()
        self._is_reference = True
        try:
            yield
        finally:
            self._is_reference = False

    def freeze_reference(self) -> None:
        """Copies the network for `reference`, unless that is done."""
        if self._frozen is None:
            self._frozen = copy.deepcopy(self.network).requires_grad_(False)

    def save(self, directory: str | Path) -> None:
        """Writes the whole pipeline, so that `from_pretrained` here and in diffusers loads the directory."""
        self.pipeline.save_pretrained(str(directory), safe_serialization=True)


def _aligned(module: nn.Module) -> nn.Module:
    """`module` with every weight at an aligned address.

    Weights mapped from a safetensors file stand where the file has them, and matrix kernels round differently there: a
    loaded policy would not give the bits of its own copy, nor those of the policy that was saved.
    """
    for parameter in module.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return module


def _latent_shape(pipeline: StableDiffusion3Pipeline, resolution: int | None) -> tuple[int, int, int]:
    """[C, H, W] of one latent."""
    config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
    if resolution is None:
        resolution = config.sample_size * scale
    unit = scale * config.patch_size
    if resolution <= 0 or resolution % unit:
        raise ValueError(f"SD3Policy: resolution must be a positive multiple of {unit} pixels, got {resolution}")
    return config.in_channels, resolution // scale, resolution // scale
