"""A small random policy for the tests, and a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tempflow_fast.policies import Condition, NetworkPolicy, guides

PROMPTS = ["a red circle", "two blue squares", "a green cross above a circle"]


class TinyPolicy(NetworkPolicy):
    """A `Policy` with a two-layer perceptron; `calls` notes the rows of every call and whether it keeps a graph."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0, width: int = 16) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.latent_shape, self.dtype, self.device = (3, 2, 2), dtype, torch.device("cpu")
        super().__init__(nn.Sequential(nn.Linear(12 + 1 + 4, width), nn.Tanh(), nn.Linear(width, 12)).to(dtype))
        for parameter in self.network.parameters():
            parameter.data = (0.5 * torch.randn(parameter.shape, generator=generator)).to(dtype)
        self.calls: list[tuple[int, bool]] = []

    def encode(self, prompts: Sequence[str], guided: bool = False) -> Condition:
        rows = [torch.randn(4, generator=torch.Generator().manual_seed(len(prompt))) for prompt in prompts]
        return Condition({"text": torch.stack(rows).to(self.dtype)})

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        self.calls.append((len(latents), torch.is_grad_enabled()))
        text = condition.tensors["text"]
        sigma = torch.as_tensor(sigma, dtype=self.dtype, device=latents.device).expand(len(latents))[:, None]
        flat = latents.flatten(1).to(self.dtype)
        texts = (text, 0 * text) if guides(guidance_scale) else (text,)
        outputs = [self.acting(torch.cat([flat, sigma, words], dim=1)) for words in texts]
        velocities = [output.to(latents.dtype).view_as(latents) for output in outputs]
        return velocities[0], velocities[1] if len(velocities) == 2 else None

    def decode(self, latents: Tensor) -> Tensor:
        return latents.sigmoid().float()

    def sigmas(self, num_steps: int) -> list[float]:
        return [1 - i / num_steps for i in range(num_steps + 1)]

    def save(self, directory: str | Path) -> None:
        raise NotImplementedError


def brightness(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict]) -> Tensor:
    """A reward with a spread: the red channel against the others."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def sgd(policy: NetworkPolicy, lr: float = 0.1) -> torch.optim.Optimizer:
    """The optimizer whose update is the gradient itself."""
    return torch.optim.SGD(policy.parameters(), lr=lr)
