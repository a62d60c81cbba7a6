"""Stable Diffusion 3 and 3.5, and every model stored in diffusers' `StableDiffusion3Pipeline` layout."""

from __future__ import annotations

from torch import Tensor

from ..errors import require
from .diffusers_pipeline import DiffusersPolicy
from .prompt_cache import Row


class SD3Policy(DiffusersPolicy):
    """A `DiffusersPolicy` on a `StableDiffusion3Pipeline`: latents [C, H, W], classifier-free guidance.

    `max_text_length` counts T5 tokens; there are 77 CLIP tokens in addition. A pipeline without T5 (`text_encoder_3` is
    None) gets no T5 tokens, which is diffusers' `max_sequence_length=0`; its default of 256 would append 256 zero
    tokens to every text.
    """

    pipeline_name = "StableDiffusion3Pipeline"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    optional_parts = ("text_encoder_3", "tokenizer_3")
    default_text_length = 128

    def _latent_shape(self) -> tuple[int, ...]:
        config = self.pipeline.transformer.config
        longest = config.pos_embed_max_size * self._token_side
        require(max(self._size) <= longest, self._name, "resolution", f"at most {longest} pixels a side", self._size)
        return config.in_channels, *(side * config.patch_size for side in self._grid)

    @property
    def _token_side(self) -> int:
        return self.pipeline.vae_scale_factor * self.pipeline.transformer.config.patch_size

    def _levels(self, num_steps: int) -> None:
        return None

    def _encode_one(self, prompt: str) -> Row:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompt,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=0 if self.pipeline.text_encoder_3 is None else self.max_text_length,
        )
        return {"text": text[0].to(self.dtype), "pooled": pooled[0].to(self.dtype)}

    def _predict(self, latents: Tensor, sigma: Tensor, tensors: Row, guidance_scale: float) -> Tensor:
        return self.acting(
            hidden_states=latents,
            timestep=sigma * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=tensors["text"],
            pooled_projections=tensors["pooled"],
            return_dict=False,
        )[0]

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        unscaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return vae.decode(unscaled, return_dict=False)[0]
