"""Teaches the transformer the exact velocity of the shapes world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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
"""The rows of one prompt share the lookup of its scenes."""
TASK_WEIGHTS = {"single_object": 1, "two_object": 2, "counting": 3, "colors": 1, "position": 4, "color_attr": 4}
"""How often each task is drawn. The tasks that bind words are learnt last, so they are drawn most often."""
EMPTY_FRACTION = 0.05
LAYOUT = 0.75
"""Above this sigma the layout is decided; below it the text adds nothing to what the noised image already shows."""
SAMPLING_STEPS = (6, 12)
"""Smallest and largest number of Euler steps for the transformer's own samples."""


class FlowTask:
    """What the transformer learns: the exact velocity on noised scenes, and optionally on its own unfinished samples.

    Args:
        pipe: a pipeline whose autoencoder and text encoders are trained.
        prompts: the prompts to train on.
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
            # The empty prompt comes last.
            self.text = encode_text(pipe, tokenize(pipe, [*(entry["prompt"] for entry in prompts), ""]))
        counts = Counter(entry["tag"] for entry in prompts)
        self.weights = torch.tensor([TASK_WEIGHTS[entry["tag"]] / counts[entry["tag"]] for entry in prompts])
        self._samples: list[Sample] = []

    def loss(self, rng: torch.Generator) -> Tensor:
        """Mean squared error of the velocity over one batch of noised scenes."""
        x, sigma, prompts, target = self._scenes(BATCH, rng)
        return mse_loss(self._velocity(x, sigma, prompts), target)

    def loss_with_samples(self, rng: torch.Generator) -> Tensor:
        """The same loss, but half of the batch are the transformer's own unfinished samples.

        Each of them then takes one Euler step. On such a sample the exact velocity leads to the nearest scene that the
        prompt describes, so it teaches the transformer to correct its errors.
        """
        x, sigma, prompts, target = self._scenes(BATCH // 2, rng)
        self._samples = [sample for sample in self._samples if sample.left]
        while len(self._samples) < BATCH // 2 // ROWS_PER_PROMPT:
            self._samples.append(self._new_sample(rng))
        own = [(s.x, s.sigma(), torch.full((ROWS_PER_PROMPT,), s.prompt), self._exact(s)) for s in self._samples]
        x, sigma, prompts, target = map(torch.cat, zip((x, sigma, prompts, target), *own, strict=True))
        predicted = self._velocity(x, sigma, prompts)
        for sample, velocities in zip(
            self._samples, predicted[BATCH // 2 :].detach().split(ROWS_PER_PROMPT), strict=True
        ):
            sample.advance(velocities)
        return mse_loss(predicted, target)

    def _velocity(self, x: Tensor, sigma: Tensor, prompts: Tensor) -> Tensor:
        tokens, pooled = (part[prompts] for part in self.text)
        return velocity(self.network, x.unflatten(1, self.shape), (tokens, pooled), sigma).flatten(1)

    def _draw_prompts(self, count: int, rng: torch.Generator) -> list[int]:
        return torch.multinomial(self.weights, count, replacement=True, generator=rng).tolist()

    def _scenes(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [count, D], sigma [count], prompts [count] and targets [count, D] of noised scenes."""
        chosen = self._draw_prompts(count // ROWS_PER_PROMPT, rng)
        x, sigma, mean, own = map(torch.cat, zip(*(self._noised(prompt, rng) for prompt in chosen), strict=True))
        empty = torch.rand(count, generator=rng) < EMPTY_FRACTION
        prompts = torch.tensor(chosen).repeat_interleave(ROWS_PER_PROMPT).masked_fill(empty, len(self.rows))
        return x, sigma, prompts, torch.where(empty[:, None], own, mean)

    def _noised(self, prompt: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [n, D], sigma [n], the exact velocity [n, D] given the prompt, and that of the one scene that was drawn."""
        rows = self.rows[prompt]
        latents = self.posterior.latents[rows[torch.randint(len(rows), (ROWS_PER_PROMPT,), generator=rng)]]
        noise, sigma = torch.randn(latents.shape, generator=rng), draw_sigma(ROWS_PER_PROMPT, rng)
        x, own = latents.lerp(noise, sigma[:, None]), noise - latents
        mean, undecided = own.clone(), sigma > DECIDED
        if undecided.any():
            mean[undecided] = self.posterior.velocity(x[undecided], sigma[undecided], rows)
        return x, sigma, mean, own

    def _new_sample(self, rng: torch.Generator) -> Sample:
        x = torch.randn(ROWS_PER_PROMPT, self.posterior.latents.shape[1], generator=rng)
        low, high = SAMPLING_STEPS
        steps = int(torch.randint(low, high + 1, (), generator=rng))
        return Sample(x, self._draw_prompts(1, rng)[0], steps, steps)

    def _exact(self, sample: Sample) -> Tensor:
        return self.posterior.velocity(sample.x, sample.sigma(), self.rows[sample.prompt])


@dataclass
class Sample:
    """Unfinished images of one prompt: x [n, D], the number of Euler steps in all, and how many are left."""

    x: Tensor
    prompt: int
    steps: int
    left: int

    def sigma(self) -> Tensor:
        """The current noise level, [n]."""
        return torch.full((len(self.x),), self.left / self.steps)

    def advance(self, velocities: Tensor) -> None:
        """Take one Euler step with velocities [n, D]."""
        self.x = self.x - velocities / self.steps
        self.left -= 1


def draw_sigma(count: int, rng: torch.Generator) -> Tensor:
    """Noise levels [count]: half of them above `LAYOUT`, where the layout is decided, half uniform; at least 0.02."""
    uniform = torch.rand(count, generator=rng)
    layout = torch.rand(count, generator=rng) < 0.5
    return torch.where(layout, LAYOUT + (1 - LAYOUT) * uniform, uniform).clamp(min=0.02)


def optimizers(transformer: SD3Transformer2DModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the attention and feed-forward layers, AdamW for everything else."""
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
