"""A pipeline class that is not in diffusers, as a user writes one: every convention differs from the library's.

Its network gets packed latents and 1000 (1 - sigma), gives the negative of the velocity, and is called twice with
guidance, which counts from 0; prompts are encoded inside `__call__`, and `__init__` declares no types.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from support.pipelines import flux_pipeline, silent
from tempflow_fast.policies import DiffusersPolicy, Family

TOKENS = 12


class OwnPipeline(DiffusionPipeline):
    def __init__(self, vae, text_encoder, tokenizer, transformer, scheduler):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=2)

    def texts(self, prompts):
        tokens = self.tokenizer(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        found = self.text_encoder(tokens.input_ids.to(self.device))
        return {"encoder_hidden_states": found.last_hidden_state, "pooled_projections": found.pooler_output}

    def noise(self, shape, generator):
        return randn_tensor(shape, generator=generator, device=self.device)

    @torch.no_grad()
    def __call__(
        self,
        prompt,
        height=16,
        width=16,
        num_inference_steps=28,
        guidance_scale=3.0,
        generator=None,
        output_type="pil",
    ):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows, high, wide = len(prompts), height // 4, width // 4
        asked, nothing = self.texts(prompts), self.texts([""] * rows)
        latents = self.noise((rows, high * wide, 16), generator)
        places = torch.cartesian_prod(torch.arange(1), torch.arange(high), torch.arange(wide)).to(latents)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        for timestep in self.scheduler.timesteps:
            shared = {
                "hidden_states": latents,
                "timestep": (1000 - timestep).expand(rows),
                "img_ids": places,
                "txt_ids": torch.zeros(TOKENS, 3).to(latents),
                "return_dict": False,
            }
            onward = self.transformer(**shared, **asked)[0]
            if guidance_scale > 0:
                onward = onward + guidance_scale * (onward - self.transformer(**shared, **nothing)[0])
            latents = self.scheduler.step(-onward, timestep, latents, return_dict=False)[0]
        spread = latents.view(rows, high, wide, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(rows, 4, 2 * high, 2 * wide)
        images = self.vae.decode(spread / self.vae.config.scaling_factor, return_dict=False)[0]
        return (self.image_processor.postprocess(images, output_type=output_type),)


class OwnPolicy(DiffusersPolicy):
    family = Family(pipeline=OwnPipeline, above=0.0)


def own_pipeline(directory: Path) -> OwnPipeline:
    """A tiny random pipeline of the class.

    Args:
        directory: for the files of its tokenizer.
    """
    flux = flux_pipeline(directory)
    parts = {name: getattr(flux, name) for name in ("vae", "text_encoder", "tokenizer")}
    width = flux.text_encoder.config.hidden_size
    network = FluxTransformer2DModel.from_config(
        {**flux.transformer.config, "guidance_embeds": False, "joint_attention_dim": width}
    )
    return silent(OwnPipeline(**parts, transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0)))
