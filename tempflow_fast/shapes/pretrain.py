"""Makes the packaged pipeline: trains its VAE, then its text encoders and transformer by flow matching on rendered scenes.

    python -m tempflow_fast.shapes.pretrain --output DIR [--vae-steps 3000] [--flow-steps 20000]

Run it again with the same directory to go on where it was stopped. The result is `DIR/pipeline`, in half precision.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from tempflow_fast.shapes.architecture import LATENT_CHANNELS, LATENT_SIZE, TEXT_LENGTH, build_pipeline
from tempflow_fast.shapes.checker import strict
from tempflow_fast.shapes.prompts import all_prompts, draw
from tempflow_fast.shapes.world import render, sample_scene

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline

BATCH = 64
NUM_SCENES = 40_000
EMPTY_PROMPT_FRACTION = 0.1
SAVE_EVERY = 500
EVAL_EVERY = 1000
EVAL_STEPS, EVAL_IMAGES = 6, 300


def make_data(seed: int, count: int) -> tuple[list[dict], Tensor]:
    """`count` prompts, the six tasks in turn, and images [count, 3, H, W] of random scenes that fulfil them."""
    rng = random.Random(seed)
    metadata = draw(all_prompts(), count, rng)
    return metadata, render([sample_scene(entry, rng) for entry in metadata])


def vae_loss(vae: AutoencoderKL, images: Tensor, rng: torch.Generator) -> Tensor:
    """Reconstruction through noisy latents plus a small penalty on their size.

    The noise makes nearby latents decode alike, so that a flow model's small errors do not show; blank images keep the decoder's
    group normalisation defined where nothing stands.
    """
    images = 2 * images - 1
    images[:2] = 0
    latents = vae.encode(images).latent_dist.mean
    noise = 0.2 * torch.randn(latents.shape, generator=rng)
    output = vae.decode(latents + noise).sample
    return l1_loss(output, images) + mse_loss(output, images) + 2e-3 * latents.square().mean()


def encode_text(pipe: StableDiffusion3Pipeline, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [R, L] to embeddings [R, L, 2 W] and pooled [R, 2 W], with gradients, as the pipeline's `encode_prompt` without T5."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    return hidden, torch.cat([out.text_embeds for out in outputs], dim=-1)


def flow_loss(pipe: StableDiffusion3Pipeline, latents: Tensor, ids: Tensor, rng: torch.Generator) -> Tensor:
    """Rectified-flow loss |v - (noise - x0)|^2; half of the sigmas uniform, half logit-normal (arXiv 2403.03206)."""
    rows = len(latents)
    sigma = torch.rand(rows, generator=rng)
    middle = torch.sigmoid(0.5 + torch.randn(rows, generator=rng))
    sigma = torch.where(torch.arange(rows) % 2 == 0, sigma, middle).view(-1, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=rng)
    embeds, pooled = encode_text(pipe, ids)
    velocity = pipe.transformer(
        hidden_states=(1 - sigma) * latents + sigma * noise,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=1000 * sigma.flatten(),
        return_dict=False,
    )[0]
    return mse_loss(velocity, noise - latents)


class Stage:
    """One training run to a fixed number of steps that survives being stopped: AdamW, cosine rate, averaged weights."""

    def __init__(self, name: str, parts: nn.ModuleDict, rate: float, steps: int, directory: Path) -> None:
        self.name, self.parts, self.rate, self.steps = name, parts, rate, steps
        self.path = directory / f"{name}.pt"
        self.average = {key: value.clone() for key, value in parts.state_dict().items()}
        self.optimizer = torch.optim.AdamW(parts.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
        self.step = 0
        if self.path.exists():
            saved = torch.load(self.path)
            parts.load_state_dict(saved["parts"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average, self.step = saved["average"], saved["step"]

    def run(self, loss: Callable[[int], Tensor], decay: float, evaluate: Callable[[], str] | None = None) -> None:
        """Train to the last step; `loss(step)` gives the loss of one batch."""
        start, first, running = time.monotonic(), self.step, None
        while self.step < self.steps:
            value = loss(self.step)
            self._update(value, decay)
            running = value.item() if running is None else 0.98 * running + 0.02 * value.item()
            if self.step % 100 == 0:
                pace = (time.monotonic() - start) / (self.step - first)
                left = pace * (self.steps - self.step) / 60
                print(f"{self.name} {self.step}/{self.steps} loss {running:.4f} {pace:.3f} s/step {left:.1f} min left", flush=True)
            if self.step % SAVE_EVERY == 0 or self.step == self.steps:
                self._save()
            if evaluate and self.step % EVAL_EVERY == 0:
                live = self.load_average()
                print(f"{self.name} {self.step} {evaluate()}", flush=True)
                self.parts.load_state_dict(live)
        self.load_average()

    def load_average(self) -> dict[str, Tensor]:
        """Put the averaged weights in place; returns the live ones."""
        live = {key: value.clone() for key, value in self.parts.state_dict().items()}
        self.parts.load_state_dict(self.average)
        return live

    def _update(self, loss: Tensor, decay: float) -> None:
        done = self.step / self.steps
        rate = self.rate * min(1.0, (self.step + 1) / 100) * (0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * done)).item())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for key, value in self.parts.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)

    def _save(self) -> None:
        state = {"parts": self.parts.state_dict(), "optimizer": self.optimizer.state_dict()}
        aside = self.path.with_suffix(".tmp")
        torch.save({**state, "average": self.average, "step": self.step}, aside)
        os.replace(aside, self.path)


def batches(count: int, seed: int) -> Iterator[Tensor]:
    """Endless shuffled index batches."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=rng)[: count // BATCH * BATCH].split(BATCH)


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents [count, C, h, w] of images in [0, 1], before scaling."""
    return torch.cat([vae.encode(2 * part - 1).latent_dist.mean for part in images.split(500)])


@torch.no_grad()
def sample_accuracy(pipe: StableDiffusion3Pipeline, held: list[dict], ids: Tensor) -> str:
    """Strict accuracy per task of ODE samples with `EVAL_STEPS` steps and no guidance."""
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(len(held), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=rng)
    embeds, pooled = encode_text(pipe, ids)
    for i in range(EVAL_STEPS):
        time_now = torch.full((len(held),), 1000 * (1 - i / EVAL_STEPS))
        latents = latents - pipe.transformer(latents, embeds, pooled, time_now, return_dict=False)[0] / EVAL_STEPS
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


def train_flow(pipe: StableDiffusion3Pipeline, metadata: list[dict], images: Tensor, steps: int, directory: Path) -> None:
    """Train transformer and text encoders together on scaled latents."""
    latents = encode_images(pipe.vae, images) * pipe.vae.config.scaling_factor
    ids = tokenize(pipe, [entry["prompt"] for entry in metadata])
    empty = tokenize(pipe, [""])
    held, _ = make_data(seed=10**6, count=EVAL_IMAGES)
    held_ids = tokenize(pipe, [entry["prompt"] for entry in held])
    parts = {"transformer": pipe.transformer, "text_1": pipe.text_encoder, "text_2": pipe.text_encoder_2}
    stage = Stage("flow", nn.ModuleDict(parts), 2e-3, steps, directory)
    rng, order = torch.Generator().manual_seed(stage.step), batches(len(images), stage.step)

    def loss(_: int) -> Tensor:
        rows = next(order)
        drop = torch.rand(len(rows), 1, generator=rng) < EMPTY_PROMPT_FRACTION
        return flow_loss(pipe, latents[rows], torch.where(drop, empty, ids[rows]), rng)

    stage.run(loss, decay=0.999, evaluate=lambda: sample_accuracy(pipe, held, held_ids))
    print(sample_accuracy(pipe, held, held_ids), flush=True)


def tokenize(pipe: StableDiffusion3Pipeline, texts: list[str]) -> Tensor:
    """Token ids [R, TEXT_LENGTH]."""
    return pipe.tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt").input_ids


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--flow-steps", type=int, default=20_000)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    metadata, images = make_data(seed=0, count=NUM_SCENES)
    pipe = build_pipeline()
    train_vae(pipe, images, options.vae_steps, options.output)
    decoded = pipe.vae.decode(encode_images(pipe.vae, images[:600])).sample.detach().clamp(-1, 1) / 2 + 0.5
    print(json.dumps({"vae_strict": strict(decoded, metadata[:600]).float().mean().item()}), flush=True)
    train_flow(pipe, metadata, images, options.flow_steps, options.output)
    pipe.to(dtype=torch.float16).save_pretrained(options.output / "pipeline", safe_serialization=True)


if __name__ == "__main__":
    main()
