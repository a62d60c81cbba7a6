"""How far a rollout with merged weights is from one with the adapter next to them, and what both take.

python -m bench.merged_distance        a 74 M network in bf16 with a LoRA of rank 32, on this machine
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from tempflow_fast import GRPOConfig, ops, rollout
from tempflow_fast.grpo.acting import acting_network
from tempflow_fast.policies import DiffusersPolicy

from .gpu.models import random_policy
from .networks import LARGE, NETWORKS, PROMPTS

STIR = 0.02
"""Deviation of the adapter's second matrix, which starts at 0: it then moves velocities by some percent."""


@dataclass(frozen=True)
class Rollout:
    """One way to draw the same branches."""

    name: str
    latents: Tensor
    seconds: float
    """Of the processor: one thread, so that other work on the machine hardly counts."""


def drawn(name: str, policy: DiffusersPolicy, config: GRPOConfig, num_rounds: int = 1) -> Rollout:
    """Draws the branches of one trajectory; the fastest of some rounds.

    Args:
        name: of the way.
        policy: acts.
        config: the settings, with the weights of the rollout.
        num_rounds: how often to draw.
    """
    table, ids = config.table(policy), torch.arange(1)
    noise, condition = ops.initial_noise(policy.latent_shape, 0, ids), policy.encode(PROMPTS[:1])
    seconds = []
    for _ in range(num_rounds):
        start = time.process_time()
        with acting_network(policy, config):
            made = rollout(policy, condition, table, noise, config.num_branches, 0, ids, config.max_batch)
        seconds.append(time.process_time() - start)
    return Rollout(name, made.latents, min(seconds))


def rollouts(network: str = LARGE) -> list[Rollout]:
    """In float32, and in bf16 with the adapter as trained and merged; all on the same noise.

    Args:
        network: one of `NETWORKS`.
    """
    low = random_policy(NETWORKS[network], torch.device("cpu"), torch.bfloat16)
    stir(low)
    exact = random_policy(NETWORKS[network], torch.device("cpu"), torch.float32)
    exact.network.load_state_dict(low.network.state_dict())
    ways = (("float32", exact, "as trained"), ("as trained", low, "as trained"), ("merged", low, "merged"))
    return [
        drawn(name, policy, GRPOConfig(num_seeds=1, num_updates=1, max_batch=12, rollout_weights=weights))
        for name, policy, weights in ways
    ]


@torch.no_grad()
def stir(policy: DiffusersPolicy) -> None:
    """Moves the adapter away from its start, where it changes nothing.

    Args:
        policy: has an adapter.
    """
    generator = torch.Generator().manual_seed(0)
    for name, weight in policy.network.named_parameters():
        if ".lora_B." in name:
            weight.copy_(STIR * torch.randn(weight.shape, generator=generator))


def distance(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference, over that of the second.

    Args:
        one: latents.
        other: latents of the same shape.
    """
    return ((one - other).double().square().mean() / other.double().square().mean()).sqrt().item()


def main() -> None:
    """Prints a line per rollout."""
    exact, trained, merged = rollouts()
    print(f"{'rollout':<12} {'from float32':>13} {'from as trained':>16} {'seconds':>8}")
    for made in (exact, trained, merged):
        far, near = distance(made.latents, exact.latents), distance(made.latents, trained.latents)
        print(f"{made.name:<12} {far:>13.4f} {near:>16.4f} {made.seconds:>8.1f}")


if __name__ == "__main__":
    main()
