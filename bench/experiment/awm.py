"""Advantage Weighted Matching (arXiv 2509.25050), the rival from the forward process. Only the experiment uses it.

Images are drawn by the ODE, without noisy steps. Training draws noise levels and noise anew, and takes the loss of flow
matching on a finished latent for its negative log-density: the ratio of the policy in training to the one that drew it
is exp(loss_old - loss), clipped as in PPO and weighted by the advantage within the images of a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import tempflow_fast as tff
from tempflow_fast.batching import equal_pieces
from tempflow_fast.policies.base import Condition, Policy
from tempflow_fast.processes import Processes

LEVELS = 4
"""Noise levels drawn for each image."""


def awm_step(
    policy: Policy,
    prompts: Sequence[str],
    reward_fn: Any,
    optimizer: torch.optim.Optimizer,
    config: tff.GRPOConfig,
    seed: int = 0,
    metadata: Sequence[dict[str, Any]] | None = None,
    processes: Processes | None = None,
) -> dict[str, Tensor | float]:
    """One iteration, in place of `grpo_step` and with its arguments; `num_seeds` is the number of images per prompt.

    Returns:
        The metrics that a run shows and the experiment keeps.
    """
    began, each = time.perf_counter(), config.num_seeds
    texts = [prompt for prompt in prompts for _ in range(each)]
    entries = [entry for entry in metadata or [{}] * len(prompts) for _ in range(each)]
    condition = policy.encode(texts)
    latents = draw(policy, condition, config, seed)
    rewards = torch.cat(
        [
            reward_fn(policy.decode(latents[piece]), texts[piece], entries[piece])
            for piece in equal_pieces(len(texts), config.max_batch)
        ]
    ).double()
    scored, groups = time.perf_counter(), rewards.view(-1, each)
    spread = groups.std(1, correction=0, keepdim=True)
    advantages = ((groups - groups.mean(1, keepdim=True)) / (spread + config.adv_eps)).flatten().float()
    metrics = train(policy, condition, latents, advantages, optimizer, config, seed)
    return {
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(correction=0),
        "group_std": spread.mean(),
        "num_calls": float(config.num_steps * len(list(equal_pieces(len(texts), config.max_batch)))),
        "num_row_evaluations": float(config.num_steps * len(texts)),
        **metrics,
        **dict.fromkeys(("kl", "skipped_updates"), 0.0),
        **dict.fromkeys(("seconds_encode", "seconds_decode", "seconds_reward", "seconds_compile"), 0.0),
        "seconds_rollout": scored - began,
        "seconds_train": time.perf_counter() - scored,
    }


@torch.no_grad()
def draw(policy: Policy, condition: Condition, config: tff.GRPOConfig, seed: int) -> Tensor:
    """Finished latents [R, *latent_shape], by Euler steps from the noise that the other methods start from."""
    sigmas = policy.sigmas(config.num_steps) if config.sigmas is None else config.sigmas
    latents = tff.ops.initial_noise(policy.latent_shape, seed, torch.arange(len(condition)), policy.device)
    for piece in equal_pieces(len(condition), config.max_batch):
        for sigma, after in pairwise(sigmas):
            latents[piece] += (after - sigma) * policy.velocity(latents[piece], sigma, condition[piece])[0]
    return latents


def train(
    policy: Policy,
    condition: Condition,
    latents: Tensor,
    advantages: Tensor,
    optimizer: torch.optim.Optimizer,
    config: tff.GRPOConfig,
    seed: int,
) -> dict[str, Tensor]:
    """Takes `num_updates` steps, each on its share of the images.

    Args:
        policy: changed in place.
        condition: R rows.
        latents: [R, *latent_shape], finished.
        advantages: [R].
        optimizer: of the policy's parameters.
        config: clip range, updates, gradient norm and batches.
        seed: of the noise levels and the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(latents)).repeat(LEVELS)
    sigmas = torch.rand(len(rows), generator=generator)
    noise = torch.randn(len(rows), *latents.shape[1:], generator=generator)
    parts = [torch.nonzero(rows % config.num_updates == update).flatten() for update in range(config.num_updates)]

    def losses(chosen: Tensor) -> Tensor:
        start, finish = noise[chosen], latents[rows[chosen]]
        level = sigmas[chosen].view(-1, *[1] * (latents.dim() - 1))
        velocity = policy.velocity(finish + level * (start - finish), sigmas[chosen], condition[rows[chosen]])[0]
        return (velocity - (start - finish)).square().flatten(1).mean(1)

    with torch.no_grad():
        old = [[losses(part[piece]) for piece in equal_pieces(len(part), config.max_batch)] for part in parts]
    found: dict[str, list[Tensor]] = {"loss": [], "clip_fraction": [], "log_ratio_rms": [], "grad_norm": []}
    for part, before in zip(parts, old, strict=True):
        optimizer.zero_grad()
        for piece, earlier in zip(equal_pieces(len(part), config.max_batch), before, strict=True):
            advantage, log_ratio = advantages[rows[part[piece]]], earlier - losses(part[piece])
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
            loss = -torch.minimum(ratio * advantage, clipped * advantage).sum() / len(part)
            loss.backward()
            found["loss"].append(loss.detach())
            found["clip_fraction"].append((ratio != clipped).float().mean())
            found["log_ratio_rms"].append(log_ratio.detach().square().mean().sqrt())
        found["grad_norm"].append(torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm))
        optimizer.step()
    return {name: torch.stack(values).mean() for name, values in found.items()}
