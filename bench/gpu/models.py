"""Networks of the published shapes with random weights: nothing is downloaded, and timing needs no trained model."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tempflow_fast.policies import DiffusersPolicy, FluxPolicy, SD3Policy


@dataclass(frozen=True)
class Shape:
    """A transformer's configuration in diffusers, and the sizes of its texts and images."""

    kind: str
    resolution: int
    text: tuple[int, int, int]
    """The number of tokens, their width, and the width of the pooled text."""
    config: dict[str, Any] = field(repr=False)
    guidance_scale: float = 4.5
    autoencoder: tuple[int, ...] = (128, 256, 512, 512)
    """The channels of the autoencoder's four resolutions."""

    @property
    def latent_channels(self) -> int:
        """Channels of the autoencoder's latents; FLUX packs 2 x 2 of them into a token."""
        channels: int = self.config["in_channels"]
        return channels // 4 if self.kind == "flux" else channels


def sd3(
    resolution: int, text: tuple[int, int, int], layers: int, heads: int, head: int, sides: tuple[int, int], **more: Any
) -> Shape:
    """An SD3 transformer; `sides` are the default and the largest side of the latents."""
    _, width, pooled = text
    config = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": head,
        "joint_attention_dim": width,
        "caption_projection_dim": heads * head,
        "pooled_projection_dim": pooled,
        "sample_size": sides[0],
        "pos_embed_max_size": sides[1],
    }
    return Shape("sd3", resolution, text, config | more)


def _flux(
    resolution: int,
    text: tuple[int, int, int],
    channels: int,
    layers: tuple[int, int],
    heads: int,
    axes: tuple[int, ...],
) -> Shape:
    """A FLUX transformer; `layers` are double and single blocks, `axes` the parts of a head that encode positions."""
    _, width, pooled = text
    config = {
        "in_channels": channels,
        "num_layers": layers[0],
        "num_single_layers": layers[1],
        "num_attention_heads": heads,
        "attention_head_dim": sum(axes),
        "axes_dims_rope": axes,
        "joint_attention_dim": width,
        "pooled_projection_dim": pooled,
        "guidance_embeds": True,
    }
    return Shape("flux", resolution, text, config, guidance_scale=3.5)


SD35_MEDIUM = sd3(
    512, (77 + 128, 4096, 2048), layers=24, heads=24, head=64, sides=(128, 384),
    dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
)  # fmt: skip
"""Stable Diffusion 3.5 Medium, 2.2 billion parameters."""
SD35_LARGE = sd3(
    512, (77 + 128, 4096, 2048), layers=38, heads=38, head=64, sides=(128, 192), qk_norm="rms_norm"
)  # fmt: skip
"""Stable Diffusion 3.5 Large, 8.1 billion parameters."""
SD3_SMALL = sd3(256, (77, 512, 512), layers=8, heads=8, head=64, sides=(32, 64))
"""A network so small that launching a kernel takes longer than running it."""
FLUX = _flux(1024, (512, 4096, 768), channels=64, layers=(19, 38), heads=24, axes=(16, 56, 56))
"""FLUX.1-dev, 12 billion parameters."""
TINY_SD3 = replace(sd3(32, (5, 16, 16), layers=2, heads=2, head=8, sides=(4, 8)), autoencoder=(8, 8, 8, 8))
TINY_FLUX = replace(
    _flux(32, (5, 16, 16), channels=16, layers=(1, 1), heads=2, axes=(4, 4, 8)), autoencoder=(8, 8, 8, 8)
)
"""For rehearsals, and for checks of more than speed."""


NO_AUTOENCODER = (1, 1, 1, 1)
"""Channels of one that is only there because a pipeline has one."""


class _Pixels(DiffusersPolicy):
    """Without an autoencoder, images are the first numbers of the latents."""

    def decode(self, latents: Tensor) -> Tensor:
        if tuple(self.pipeline.vae.config.block_out_channels) != NO_AUTOENCODER:
            return super().decode(latents)
        return latents.flatten(1)[:, : 3 * 16].view(-1, 3, 4, 4).sigmoid()


class _RandomSD3(_Pixels, SD3Policy):
    pass


class _RandomFlux(_Pixels, FluxPolicy):
    pass


def network_without_weights(shape: Shape, dtype: torch.dtype) -> nn.Module:
    """The transformer on the meta device; needs diffusers."""
    import diffusers

    names = {"sd3": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel"}
    with torch.device("meta"):
        return nn.Module.to(getattr(diffusers, names[shape.kind])(**shape.config), dtype)


def autoencoder_without_weights(channels: tuple[int, ...], latent_channels: int) -> nn.Module:
    """That of SD3.5 and FLUX.1, if it has their channels, on the meta device; needs diffusers."""
    import diffusers

    with torch.device("meta"):
        return diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=2,
            latent_channels=latent_channels,
            norm_num_groups=min(32, max(1, channels[0] // 2)),
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )


def random_policy(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    lora: bool = True,
    autoencoder: bool = False,
) -> DiffusersPolicy:
    """A policy of that shape, with a LoRA of rank 32 or for full fine-tuning; needs diffusers and peft.

    With `autoencoder` it decodes by an autoencoder of the published shape in float32; otherwise images are the first
    numbers of the latents.
    """
    network = _filled(network_without_weights(shape, dtype).to_empty(device=device))
    channels = shape.autoencoder if autoencoder else NO_AUTOENCODER
    vae = _filled(autoencoder_without_weights(channels, shape.latent_channels).to_empty(device=device))
    return _policy_around(network, vae, shape, lora)


def policy_without_weights(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> DiffusersPolicy:
    """The same on the meta device, with a LoRA of rank 32."""
    vae = autoencoder_without_weights(NO_AUTOENCODER, shape.latent_channels)
    return _policy_around(network_without_weights(shape, dtype), vae, shape, lora=True)


def _policy_around(network: nn.Module, vae: nn.Module, shape: Shape, lora: bool) -> DiffusersPolicy:
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    absent: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    if shape.kind == "sd3":
        absent |= dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    named, policy_class = {
        "sd3": (diffusers.StableDiffusion3Pipeline, _RandomSD3),
        "flux": (diffusers.FluxPipeline, _RandomFlux),
    }[shape.kind]
    kind = type(named.__name__, (named,), {"encode_prompt": partial(_random_texts, shape)})
    policy = policy_class(kind(transformer=network, scheduler=scheduler, vae=vae, **absent), shape.resolution)
    if lora:
        policy.add_lora(rank=32, alpha=64)
    return policy


def _random_texts(shape: Shape, *args: Any, prompt: str | list[str], device: torch.device, **kwargs: Any) -> Any:
    """What the pipelines' `encode_prompt` returns, seeded by the letters of the prompts."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    tokens, width, pooled = shape.text
    rows = [_random(text, (tokens, width), (pooled,), device) for text in texts]
    text, whole = (torch.stack(parts) for parts in zip(*rows, strict=True))
    if shape.kind == "flux":
        return text, whole, torch.zeros(tokens, 3, device=device)
    negative = [_random("", (tokens, width), (pooled,), device)] * len(texts)
    uncond, uncond_whole = (torch.stack(parts) for parts in zip(*negative, strict=True))
    return text, uncond, whole, uncond_whole


def _random(text: str, *shapes_and_device: Any) -> list[Tensor]:
    *shapes, device = shapes_and_device
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    return [torch.randn(size, generator=generator).to(device) for size in shapes]


@torch.no_grad()
def _filled(network: nn.Module) -> nn.Module:
    """Matrices of deviation 0.02, norms of 1, biases of 0: activations stay finite through any number of blocks."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(0)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.dim() > 1:
            tensor.normal_(0, 0.02, generator=generator)
        else:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
    return network
