"""Rollout, advantages -> optimizer steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from .batching import equal_pieces
from .config import GRPOConfig
from .objective import acting_velocity, gather, pair_loss, signal_pairs
from .policies.base import Policy
from .rollout import Rollout


def update(
    policy: Policy, rollout: Rollout, advantages: Tensor, optimizer: Optimizer, config: GRPOConfig
) -> dict[str, Tensor]:
    """Trains the policy on a rollout, `config.num_updates` optimizer steps.

    Trajectory n belongs to update n % num_updates with all its steps and branches, so every update sees each prompt
    that has enough seeds. An update's loss is the mean over all its (trajectory, branch step) pairs, of which those
    whose advantages are all 0 are not run; an update without any signal leaves the policy and the optimizer alone.

    Args:
        policy: the policy that acted, not changed since.
        rollout: its trajectories.
        advantages: [N, B, K] on the host.
        optimizer: holds the policy's parameters; its gradients are cleared.
        config: the settings.

    Returns:
        Scalar tensors: loss and grad_norm (means over updates), kl, clip_fraction and log_ratio_rms (means over the
        pairs that were run), signal_fraction (their share).
    """
    num_trajectories, num_steps, _ = advantages.shape
    deals = [torch.arange(num_trajectories)[first :: config.num_updates] for first in range(config.num_updates)]
    plans = [_micro_batches(signal_pairs(advantages, trajectories), config.micro_batch) for trajectories in deals]
    velocities_old = _acting_velocities(policy, rollout, advantages, plans, config)
    statistics, grad_norms = [], []
    for trajectories, plan, velocities in zip(deals, plans, velocities_old, strict=True):
        optimizer.zero_grad(set_to_none=True)
        for pairs, velocity_old in zip(plan, velocities, strict=True):
            batch = gather(rollout, advantages, pairs)
            out = pair_loss(policy, batch, velocity_old, config.clip_range, config.beta, config.guidance_scale)
            loss = out.loss * (len(pairs) / (len(trajectories) * num_steps))
            loss.backward()
            per_pair = torch.stack([out.kl, out.clip_fraction, out.log_ratio.square().mean()])
            statistics.append(torch.cat([loss.detach().view(1), per_pair * len(pairs)]))
        grad_norms.append(clip_grad_norm_(policy.parameters(), config.max_grad_norm).detach())
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    num_pairs = sum(len(pairs) for plan in plans for pairs in plan)
    return _metrics(statistics, grad_norms, num_pairs, num_trajectories * num_steps)


def _micro_batches(pairs: Tensor, limit: int | None) -> list[Tensor]:
    return [pairs[rows] for rows in equal_pieces(len(pairs), limit)]


def _acting_velocities(
    policy: Policy, rollout: Rollout, advantages: Tensor, plans: list[list[Tensor]], config: GRPOConfig
) -> list[list[Tensor | None]]:
    """velocity_old of every micro-batch: None in the first update, which starts from the policy that acted.

    The others are evaluated here, before any update, in the micro-batches that training will use.
    """
    first, *later = plans
    return [[None] * len(first)] + [
        [acting_velocity(policy, gather(rollout, advantages, pairs), config.guidance_scale) for pairs in plan]
        for plan in later
    ]


def _metrics(
    statistics: list[Tensor], grad_norms: list[Tensor], num_pairs: int, num_possible: int
) -> dict[str, Tensor]:
    """Sums over micro-batches of (loss, kl, clip fraction, squared log-ratio) -> named means."""
    loss, *per_pair = torch.stack(statistics).sum(dim=0) if statistics else torch.zeros(4)
    kl, clip_fraction, square = (total / max(num_pairs, 1) for total in per_pair)
    return {
        "loss": loss / len(grad_norms),
        "kl": kl,
        "clip_fraction": clip_fraction,
        "log_ratio_rms": square.sqrt(),
        "grad_norm": torch.stack(grad_norms).mean(),
        "signal_fraction": torch.tensor(num_pairs / num_possible),
    }
