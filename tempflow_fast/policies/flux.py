"""FLUX.1, and every model stored in diffusers' `FluxPipeline` layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .packing import PackedPolicy
from .prompt_cache import Row

if TYPE_CHECKING:
    from diffusers import FluxPipeline


class FluxPolicy(PackedPolicy):
    """A `PackedPolicy` on a `FluxPipeline`.

    A network with embedded guidance (FLUX.1-dev) takes the guidance scale as an input, the pipeline's `guidance_scale`;
    it takes any scale as it is, 0 and 1 as well. A network without (FLUX.1-schnell) gets classifier-free guidance
    against the empty prompt, the pipeline's `true_cfg_scale`.

    Args:
        pipeline: as for `DiffusersPolicy`.
        resolution: as for `DiffusersPolicy`.
        max_text_length: as for `DiffusersPolicy`.
    """

    pipeline_name = "FluxPipeline"
    text_encoders = ("text_encoder", "text_encoder_2")
    default_text_length = 512

    def __init__(
        self,
        pipeline: FluxPipeline,
        resolution: int | tuple[int, int] | None = None,
        max_text_length: int | None = None,
    ) -> None:
        super().__init__(pipeline, resolution, max_text_length)
        rows, columns = (torch.arange(length, dtype=torch.float32) for length in self._grid)
        # (0, row, column) of every image token, [L, 3]; text tokens are at the origin.
        self._image_ids = torch.cartesian_prod(torch.zeros(1), rows, columns).to(self.device)

    @property
    def _embeds_guidance(self) -> bool:
        return self.pipeline.transformer.config.guidance_embeds

    def _encode_one(self, prompt: str) -> Row:
        text, pooled, _ = self.pipeline.encode_prompt(
            prompt, None, device=self.device, max_sequence_length=self.max_text_length
        )
        return {"text": text[0].to(self.dtype), "pooled": pooled[0].to(self.dtype)}

    def _predict(self, latents: Tensor, sigma: Tensor, tensors: Row, guidance_scale: float) -> Tensor:
        text = tensors["text"]
        return self.acting(
            hidden_states=latents,
            timestep=sigma,
            guidance=torch.full_like(sigma, guidance_scale) if self._embeds_guidance else None,
            pooled_projections=tensors["pooled"],
            encoder_hidden_states=text,
            txt_ids=self._image_ids.new_zeros(text.shape[1], 3),
            img_ids=self._image_ids,
            return_dict=False,
        )[0]

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        unscaled = self._unpacked(latents) / vae.config.scaling_factor + vae.config.shift_factor
        return vae.decode(unscaled, return_dict=False)[0]
