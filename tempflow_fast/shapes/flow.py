"""Teaches the transformer the exact velocity of the shapes world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from tempflow_fast.shapes.losses import encode_scenes, encode_text, tokenize, velocity
from tempflow_fast.shapes.muon import Muon
from tempflow_fast.shapes.posterior import DECIDED, Posterior
from tempflow_fast.shapes.scenes import Catalogue

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    from tempflow_fast.shapes.prompts import Metadata

BATCH = 64
ROWS_PER_PROMPT = 2
"""Rows of one prompt share the reading of its scenes."""
TASK_WEIGHTS = {"single_object": 1, "two_object": 2, "counting": 3, "colors": 1, "position": 4, "color_attr": 4}
"""How often each task is drawn. Those that bind words are the last to be learnt."""
EMPTY_FRACTION = 0.05
LAYOUT = 0.75
"""Above this sigma it is decided what goes where; below it the text says nothing that the noised image does not."""


class FlowTask:
    """Draws batches of noised scenes with their exact velocities; the transformer's error on them is the loss.

    Args:
        pipe: its autoencoder and text encoders are done.
        prompts: what may be drawn.
        compiled: run the transformer through torch.compile, which needs a C++ compiler and is a fifth faster.
    """

    def __init__(self, pipe: StableDiffusion3Pipeline, prompts: Sequence[Metadata], compiled: bool = False) -> None:
        self.network = torch.compile(pipe.transformer) if compiled else pipe.transformer
        catalogue = Catalogue(prompts)
        latents = encode_scenes(pipe.vae, catalogue.scenes) * pipe.vae.config.scaling_factor
        self.shape = latents.shape[1:]
        self.posterior = Posterior(latents.flatten(1))
        self.rows = [catalogue.rows(entry) for entry in prompts]
        with torch.no_grad():
            # The last one is the empty prompt.
            self.text = encode_text(pipe, tokenize(pipe, [*(entry["prompt"] for entry in prompts), ""]))
        counts = Counter(entry["tag"] for entry in prompts)
        self.weights = torch.tensor([TASK_WEIGHTS[entry["tag"]] / counts[entry["tag"]] for entry in prompts])

    def loss(self, rng: torch.Generator) -> Tensor:
        """Mean squared error of the velocity over one batch."""
        chosen = torch.multinomial(self.weights, BATCH // ROWS_PER_PROMPT, replacement=True, generator=rng).tolist()
        x, sigma, target = map(torch.cat, zip(*(self._draw(prompt, rng) for prompt in chosen), strict=True))
        prompts = torch.tensor(chosen).repeat_interleave(ROWS_PER_PROMPT)
        empty = torch.rand(BATCH, generator=rng) < EMPTY_FRACTION
        target = torch.where(empty[:, None], target[:, 1], target[:, 0])
        text = tuple(part[prompts.masked_fill(empty, -1)] for part in self.text)
        predicted = velocity(self.network, x.unflatten(1, self.shape), text, sigma)
        return mse_loss(predicted.flatten(1), target)

    def _draw(self, prompt: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x [n, D], sigma [n], targets [n, 2, D]: the mean over the prompt's scenes, and this scene's own."""
        rows = self.rows[prompt]
        latents = self.posterior.latents[rows[torch.randint(len(rows), (ROWS_PER_PROMPT,), generator=rng)]]
        noise, sigma = torch.randn(latents.shape, generator=rng), draw_sigma(ROWS_PER_PROMPT, rng)
        x = latents.lerp(noise, sigma[:, None])
        own = noise - latents
        mean, undecided = own.clone(), sigma > DECIDED
        if undecided.any():
            mean[undecided] = self.posterior.velocity(x[undecided], sigma[undecided], rows)
        return x, sigma, torch.stack([mean, own], 1)


def draw_sigma(count: int, rng: torch.Generator) -> Tensor:
    """Noise levels [count]: half of them where the layout is decided, half uniform."""
    uniform = torch.rand(count, generator=rng)
    layout = torch.rand(count, generator=rng) < 0.5
    return torch.where(layout, LAYOUT + (1 - LAYOUT) * uniform, uniform).clamp(min=0.02)


def optimizers(transformer: SD3Transformer2DModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of attention and feed-forward layers, AdamW for all else."""
    matrices = {
        name: weight
        for name, weight in transformer.transformer_blocks.named_parameters(prefix="transformer_blocks")
        if weight.ndim == 2 and "norm1" not in name
    }
    others = [weight for name, weight in transformer.named_parameters() if name not in matrices]
    return [
        Muon(matrices.values(), lr=0.02),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=1e-3),
    ]
