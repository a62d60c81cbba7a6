"""Transformers of SD3's kind in three sizes with random weights, and iterations on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tempflow_fast import GRPOConfig
from tempflow_fast.policies import DiffusersPolicy

from .gpu.models import Shape, random_policy, sd3

TEXT = 16
"""Tokens of a prompt; an image has 64."""
PROMPTS = ("a red fox", "a city at night", "two cups", "a bridge", "snow", "a green door", "a cat", "the sea")
NETWORKS = {
    "0.3 M": sd3(128, (TEXT, 64, 64), layers=2, heads=4, head=16, sides=(16, 16)),
    "2.6 M": sd3(128, (TEXT, 128, 128), layers=4, heads=4, head=32, sides=(16, 16)),
    "74 M": sd3(128, (TEXT, 512, 512), layers=8, heads=8, head=64, sides=(16, 16)),
}
"""Latents are 16 x 16 x 16. The first is so small that what surrounds a network shows, the last is the size from which
on nothing does."""
SMALL, MIDDLE, LARGE = NETWORKS
MAX_BATCH = {SMALL: 48, MIDDLE: 48, LARGE: 12}
"""Rows of a call whose activations stay in a cache."""
EVERY_REWARD_COUNTS = 1e-4


@dataclass(frozen=True)
class Work:
    """An iteration on a network: one seed per prompt, the paper's T = 10 and K = 6, one update."""

    network: str
    num_prompts: int = 1
    guided: bool = False
    with_kl: bool = False
    adapter: bool = False
    """A LoRA of rank 32 instead of all weights."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of the iteration."""
        return PROMPTS[: self.num_prompts]

    @property
    def config(self) -> GRPOConfig:
        """Settings that give every branch an advantage, so that every pair is trained."""
        return GRPOConfig(
            num_seeds=1,
            num_updates=1,
            max_batch=MAX_BATCH[self.network],
            micro_batch=MAX_BATCH[self.network],
            guidance_scale=4.5 if self.guided else 1.0,
            beta=0.001 if self.with_kl else 0.0,
            adv_eps=EVERY_REWARD_COUNTS,
        )

    def changed(self, **settings: object) -> GRPOConfig:
        """The settings with others."""
        return replace(self.config, **settings)

    @property
    def shape(self) -> Shape:
        """Of the network."""
        return NETWORKS[self.network]

    def policy(self) -> DiffusersPolicy:
        """A new network in float32 on the CPU."""
        return random_policy(self.shape, torch.device("cpu"), torch.float32, lora=self.adapter)

    def __str__(self) -> str:
        more = [", guidance"] * self.guided + [", KL"] * self.with_kl + [", LoRA"] * self.adapter
        return f"{self.network}, N = {self.num_prompts}{''.join(more)}"


def optimizer_of(policy: DiffusersPolicy) -> torch.optim.Optimizer:
    """AdamW that hardly moves, so that every round does the same."""
    return torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)


def redness(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    """A reward that takes no time."""
    return images[:, 0].mean((1, 2))
