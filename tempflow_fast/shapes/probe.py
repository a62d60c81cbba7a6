"""Judges a shapes pipeline: strict accuracy by task, and how often an image fits the opposite of its prompt.

    python -m tempflow_fast.shapes.probe [--pipeline DIR] [--images 300] [--steps 10]

Prompts whose combination of words is not in pretraining are judged separately (`new`). Sampling uses no guidance.
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
    """Sample one image per text without guidance.

    Args:
        pipe: the pipeline.
        texts: R prompts.
        steps: number of equal Euler steps.
        seed: of the initial noise.

    Returns:
        Images [R, 3, H, W] in [0, 1].
    """
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
    """Sample images and measure how many are correct.

    Args:
        pipe: the pipeline.
        images: number of images of pretraining prompts, divided equally among the tasks. Each task that binds words
            gets as many again of prompts whose combination of words is not in pretraining.
        steps: number of Euler steps.
        seed: of the prompts and the initial noise.

    Returns:
        Shares of correct images: `TASK` for every task, and `strict`, their mean. For the tasks that bind words also
        `TASK opposite`, the share of the same images that fits the opposite prompt, and both for new combinations,
        `new TASK` and `new TASK opposite`.
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
    """Strict accuracy as a number."""
    return round(strict(images, metadata).float().mean().item(), 4)


def main() -> None:
    """Command line."""
    from diffusers import StableDiffusion3Pipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=pipeline_path(), help="default: the packaged one")
    parser.add_argument("--images", type=int, default=300, help="number of images; default %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="number of Euler steps; default %(default)s")
    options = parser.parse_args()
    pipe = StableDiffusion3Pipeline.from_pretrained(
        options.pipeline, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    print(json.dumps(judge(pipe, options.images, options.steps), indent=2))


if __name__ == "__main__":
    main()
