"""Makes the packaged pipeline: trains its VAE, its text encoders, and then both with the transformer by flow matching.

    python -m tempflow_fast.shapes.pretrain --output DIR [--vae-steps 1500] [--flow-steps 12000]

Run it again with the same directory to go on where it was stopped. The result is `DIR/pipeline`, in half precision.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tempflow_fast.shapes.architecture import LATENT_CHANNELS, LATENT_SIZE, TEXT_WIDTH, build_pipeline
from tempflow_fast.shapes.checker import strict
from tempflow_fast.shapes.losses import describe, encode_text, flow_loss, text_loss, tokenize, vae_loss, velocity
from tempflow_fast.shapes.prompts import NUMBERS, RELATIONS, all_prompts, draw
from tempflow_fast.shapes.stage import Stage, batches
from tempflow_fast.shapes.world import COLORS, SHAPES, render, sample_scene

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline

NUM_SCENES = 40_000
EMPTY_PROMPT_FRACTION = 0.1
EVAL_STEPS, EVAL_IMAGES = 6, 300


def make_data(seed: int, count: int) -> tuple[list[dict], Tensor]:
    """`count` prompts, the six tasks in turn, and images [count, 3, H, W] of random scenes that fulfil them."""
    rng = random.Random(seed)
    metadata = draw(all_prompts(), count, rng)
    return metadata, render([sample_scene(entry, rng) for entry in metadata])


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents [count, C, h, w] of images in [0, 1], before scaling."""
    return torch.cat([vae.encode(2 * part - 1).latent_dist.mean for part in images.split(500)])


@torch.no_grad()
def sample_accuracy(pipe: StableDiffusion3Pipeline, held: list[dict], ids: Tensor) -> str:
    """Strict accuracy per task of ODE samples with `EVAL_STEPS` steps and no guidance."""
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(len(held), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=rng)
    text = encode_text(pipe, ids)
    for i in range(EVAL_STEPS):
        sigma = torch.full((len(held),), 1 - i / EVAL_STEPS)
        latents = latents - velocity(pipe.transformer, latents, text, sigma) / EVAL_STEPS
    images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1) / 2 + 0.5
    right = strict(images, held).float()
    tags = [entry["tag"] for entry in held]
    table = {tag: right[[t == tag for t in tags]].mean().item() for tag in dict.fromkeys(tags)}
    return f"strict {right.mean().item():.3f} " + " ".join(f"{tag} {value:.2f}" for tag, value in sorted(table.items()))


def train_vae(pipe: StableDiffusion3Pipeline, images: Tensor, steps: int, directory: Path) -> None:
    """Train the autoencoder and set its scaling factor, so that latents have unit variance."""
    stage = Stage("vae", nn.ModuleDict({"vae": pipe.vae}), 2e-3, steps, directory)
    rng, order = torch.Generator().manual_seed(stage.step), batches(len(images), stage.step)
    stage.run(lambda _: vae_loss(pipe.vae, images[next(order)], rng), decay=0.995)
    latents = encode_images(pipe.vae, images[:4000])
    pipe.vae.register_to_config(scaling_factor=1 / latents.std().item())


def train_text(pipe: StableDiffusion3Pipeline, steps: int, directory: Path) -> None:
    """Teach the text encoders what the words say, as CLIP's are taught before Stable Diffusion 3 sees them.

    From scratch, flow matching alone took thousands of steps to notice the text: its loss hardly depends on it.
    """
    metadata = all_prompts()
    ids = tokenize(pipe, [entry["prompt"] for entry in metadata])
    labels = torch.tensor([describe(entry) for entry in metadata])
    sizes = [1 + max(NUMBERS)] * len(SHAPES) + [1 + len(COLORS)] * len(SHAPES) + [1 + len(RELATIONS), 1 + len(SHAPES)]
    heads = nn.ModuleList(nn.Linear(2 * TEXT_WIDTH, size) for size in sizes)
    parts = {"text_1": pipe.text_encoder, "text_2": pipe.text_encoder_2, "heads": heads}
    stage = Stage("text", nn.ModuleDict(parts), 1e-3, steps, directory)
    order = batches(len(metadata), stage.step)

    def loss(_: int) -> Tensor:
        rows = next(order)
        return text_loss(heads, encode_text(pipe, ids[rows])[1], labels[rows])

    stage.run(loss, decay=0.99)


def train_flow(
    pipe: StableDiffusion3Pipeline, metadata: list[dict], images: Tensor, steps: int, directory: Path
) -> None:
    """Train transformer and text encoders together on scaled latents."""
    latents = encode_images(pipe.vae, images) * pipe.vae.config.scaling_factor
    ids, empty = tokenize(pipe, [entry["prompt"] for entry in metadata]), tokenize(pipe, [""])
    judged, _ = make_data(seed=10**6, count=EVAL_IMAGES)
    judged_ids = tokenize(pipe, [entry["prompt"] for entry in judged])
    parts = {"transformer": pipe.transformer, "text_1": pipe.text_encoder, "text_2": pipe.text_encoder_2}
    stage = Stage("flow", nn.ModuleDict(parts), 2e-3, steps, directory)
    rng, order = torch.Generator().manual_seed(stage.step), batches(len(images), stage.step)

    def loss(_: int) -> Tensor:
        rows = next(order)
        drop = torch.rand(len(rows), 1, generator=rng) < EMPTY_PROMPT_FRACTION
        return flow_loss(pipe, latents[rows], torch.where(drop, empty, ids[rows]), rng)

    stage.run(loss, decay=0.999, evaluate=lambda: sample_accuracy(pipe, judged, judged_ids))
    print(sample_accuracy(pipe, judged, judged_ids), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--text-steps", type=int, default=500)
    parser.add_argument("--flow-steps", type=int, default=12_000)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    metadata, images = make_data(seed=0, count=NUM_SCENES)
    pipe = build_pipeline()
    train_vae(pipe, images, options.vae_steps, options.output)
    decoded = pipe.vae.decode(encode_images(pipe.vae, images[:600])).sample.detach().clamp(-1, 1) / 2 + 0.5
    print(json.dumps({"vae_strict": strict(decoded, metadata[:600]).float().mean().item()}), flush=True)
    train_text(pipe, options.text_steps, options.output)
    train_flow(pipe, metadata, images, options.flow_steps, options.output)
    pipe.to(dtype=torch.float16).save_pretrained(options.output / "pipeline", safe_serialization=True)


if __name__ == "__main__":
    main()
