"""Judges a shapes pipeline: strict accuracy of each task, and how often binding prompts come out the other way round.

    python -m tempflow_fast.shapes.probe [--pipeline DIR] [--images 300] [--steps 10]

Prompts whose combination of words pretraining never saw are judged apart (`new`). Sampling takes no guidance.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tempflow_fast.shapes import pipeline_path
from tempflow_fast.shapes.architecture import LATENT_CHANNELS, LATENT_SIZE
from tempflow_fast.shapes.checker import strict
from tempflow_fast.shapes.losses import decode_images, encode_text, tokenize, velocity
from tempflow_fast.shapes.prompts import BINDING, TASKS, Metadata, opposite, pretraining_prompts, unseen_prompts

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

ROWS = 64


@torch.no_grad()
def sample(pipe: StableDiffusion3Pipeline, texts: Sequence[str], steps: int, seed: int) -> Tensor:
    """Images [len(texts), 3, H, W] in [0, 1] by `steps` even Euler steps."""
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(texts), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=rng)
    finished = []
    for x, ids in zip(latents.split(ROWS), tokenize(pipe, list(texts)).split(ROWS), strict=True):
        text = encode_text(pipe, ids)
        for step in range(steps):
            x = x - velocity(pipe.transformer, x, text, torch.full((len(x),), 1 - step / steps)) / steps
        finished.append(x)
    return decode_images(pipe.vae, torch.cat(finished))


def judge(pipe: StableDiffusion3Pipeline, images: int = 300, steps: int = 10, seed: int = 0) -> dict[str, float]:
    """Shares of right images: `strict` (the mean of the tasks), each task, and `TASK opposite`; with `new` in front,
    those of combinations that pretraining never saw. `images` in all for seen prompts, as many per task for new ones.
    """
    rng, count = random.Random(seed), images // len(TASKS)
    kinds = {task: [entry for entry in pretraining_prompts() if entry["tag"] == task] for task in TASKS}
    kinds |= {f"new {task}": [entry for entry in unseen_prompts() if entry["tag"] == task] for task in BINDING}
    drawn = {kind: rng.choices(entries, k=count) for kind, entries in kinds.items()}
    entries = [entry for chosen in drawn.values() for entry in chosen]
    made = sample(pipe, [entry["prompt"] for entry in entries], steps, seed).split(count)
    shares = {}
    for (kind, chosen), made_of_it in zip(drawn.items(), made, strict=True):
        shares[kind] = _share(made_of_it, chosen)
        if chosen[0]["tag"] in BINDING:
            shares[f"{kind} opposite"] = _share(made_of_it, [opposite(entry) for entry in chosen])
    return {"strict": round(sum(shares[task] for task in TASKS) / len(TASKS), 4), **shares}


def _share(images: Tensor, metadata: Sequence[Metadata]) -> float:
    return round(strict(images, metadata).float().mean().item(), 4)


def main() -> None:
    """Command line."""
    from diffusers import StableDiffusion3Pipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=pipeline_path())
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    pipe = StableDiffusion3Pipeline.from_pretrained(
        options.pipeline, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    print(json.dumps(judge(pipe, options.images, options.steps), indent=2))


if __name__ == "__main__":
    main()
