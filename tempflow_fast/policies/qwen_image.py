"""Qwen-Image, and every model stored in diffusers' `QwenImagePipeline` layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .packing import PackedPolicy
from .prompt_cache import Row


class QwenImagePolicy(PackedPolicy):
    """A `PackedPolicy` on a `QwenImagePipeline`.

    Guidance is the pipeline's `true_cfg_scale` with the negative prompt " ", as in the model card: the combined
    velocity of every token is scaled to the length of the conditional one, so `velocity` returns it combined. Texts
    differ in length; those of one `encode` call are padded to the longest, and masked.
    """

    pipeline_name = "QwenImagePipeline"
    text_encoders = ("text_encoder",)
    default_text_length = 1024
    longest_text = 1024
    negative_prompt = " "

    @property
    def _idle_modules(self) -> tuple[str, ...]:
        # Only the image tokens of the last block are used.
        last = f"transformer_blocks.{len(self.pipeline.transformer.transformer_blocks) - 1}"
        return f"{last}.attn.to_add_out", f"{last}.txt_mlp"

    def _encode_one(self, prompt: str) -> Row:
        text, _ = self.pipeline.encode_prompt(prompt, device=self.device, max_sequence_length=self.max_text_length)
        return {"text": text[0].to(self.dtype)}

    def _collate(self, rows: Sequence[Row]) -> Row:
        texts = [row["text"] for row in rows]
        lengths = torch.tensor([len(text) for text in texts])
        tensors = {"text": pad_sequence(texts, batch_first=True)}
        # Attention has faster kernels without a mask, and whether the lengths differ is known here, on the host.
        if lengths.min() < lengths.max():
            tensors["mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).to(texts[0].device)
        return tensors

    def _predict(self, latents: Tensor, sigma: Tensor, tensors: Row, guidance_scale: float) -> Tensor:
        return self.acting(
            hidden_states=latents,
            timestep=sigma,
            encoder_hidden_states=tensors["text"],
            encoder_hidden_states_mask=tensors.get("mask"),
            img_shapes=[[(1, *self._grid)]] * len(latents),
            return_dict=False,
        )[0]

    def _combine(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> tuple[Tensor, None]:
        combined = uncond + guidance_scale * (cond - uncond)
        return combined * (cond.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True)), None

    def _decode(self, latents: Tensor) -> Tensor:
        vae, config = self.pipeline.vae, self.pipeline.vae.config
        mean, std = (latents.new_tensor(part).view(-1, 1, 1) for part in (config.latents_mean, config.latents_std))
        unscaled = self._unpacked(latents) / (1 / std) + mean  # in the pipeline's own order, for the same bits
        frames = unscaled.unsqueeze(2)  # an image is a video of one frame
        return vae.decode(frames, return_dict=False)[0][:, :, 0]
