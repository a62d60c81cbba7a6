"""Decoding in bf16 next to float32."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers import AutoencoderKL
from support.policies import CLASSES, make

from tempflow_fast.policies.vae import Bf16Decoder
from tempflow_fast.prompts.sets import get_prompts
from tempflow_fast.run.load import load_policy
from tempflow_fast.shapes.losses import encode_scenes
from tempflow_fast.shapes.world import sample_scene

LEVEL = 1 / 255


def published():
    """The shape of SD3's autoencoder, with random weights."""
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


@CLASSES
def test_bf16_is_near_and_leaves_the_weights_exact(tmp_path, name):
    policy = make(name, tmp_path)
    latents = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    exact, weights = policy.decode(latents), [weight.clone() for weight in policy.pipeline.vae.parameters()]
    policy.decode_in_bf16()
    near = policy.decode(latents)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).square().mean().sqrt() < LEVEL
    assert all(map(torch.equal, weights, policy.pipeline.vae.parameters()))
    assert policy.pipeline.vae.dtype == torch.float32


def test_most_products_are_in_16_bits():
    """Of the published shape, the first blocks and nothing else: their weights are most of the decoder's."""
    with torch.device("meta"):
        vae = published()
    decoder = Bf16Decoder(vae)
    with decoder.active():
        sizes = {dtype: 0 for dtype in (torch.bfloat16, torch.float32)}
        for weight in vae.decoder.parameters():
            sizes[weight.dtype] += weight.numel()
    assert sizes[torch.bfloat16] > 0.95 * sum(sizes.values())


def distance(vae, latents):
    """Root mean square of the difference of pixels in 0..1, without and with the last block in float32."""

    def images():
        return (vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    with torch.no_grad():
        exact = images()
        with Bf16Decoder(vae).active():
            near = images() - exact
        vae.decoder.to(torch.bfloat16)
        far = images() - exact
    return near.square().mean().sqrt().item(), far.square().mean().sqrt().item()


def test_pixels_of_the_packaged_pipeline_differ_by_a_tenth_of_a_level():
    vae = load_policy("embedded").pipeline.vae
    rng = random.Random(0)
    prompts = get_prompts("shapes", None, "prompt").training(0, 24, 0)
    near, far = distance(vae, encode_scenes(vae, [sample_scene(prompt, rng) for prompt in prompts]))
    assert near < 0.15 * LEVEL
    assert far > 2 * near, "the last block matters most"


@pytest.mark.slow
def test_pixels_of_the_published_shape_differ_by_a_level():
    torch.manual_seed(0)
    near, far = distance(published(), torch.randn(1, 16, 2, 2))
    assert near < LEVEL
    assert near < far


def test_an_autoencoder_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"vae_precision must be 'fp32' for an autoencoder whose .* got Linear"):
        Bf16Decoder(torch.nn.Linear(2, 2))
