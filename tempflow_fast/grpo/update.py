"""Rollout, advantages -> optimizer steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..batching import deal, equal_pieces, padded
from ..policies.base import Policy
from ..processes import Processes
from ..settings.iteration import GRPOConfig
from .objective import acting_velocity, gather, pair_loss, signal_pairs
from .rollout import Rollout


def update(
    policy: Policy,
    rollout: Rollout,
    advantages: Tensor,
    optimizer: Optimizer,
    config: GRPOConfig,
    processes: Processes | None = None,
) -> dict[str, Tensor]:
    """Trains the policy on a rollout, `config.num_updates` optimizer steps.

    Trajectory n belongs to update n % num_updates with all its steps and branches, so every update sees each prompt
    that has enough seeds. An update's loss is the mean over all its (trajectory, branch step) pairs, in whatever
    process they are; those whose advantages are all 0 are not run, and an update without any signal leaves the policy
    and the optimizer alone.

    Args:
        policy: the policy that acted, not changed since.
        rollout: the trajectories of this process, those of `padded(deal(...))`.
        advantages: [N, B, K] of all processes, on the host.
        optimizer: holds the policy's parameters; its gradients are cleared.
        config: the settings.
        processes: who shares the update; None: this process alone.

    Returns:
        Scalar tensors, equal in all processes: loss and grad_norm (means over updates), kl, clip_fraction and
        log_ratio_rms (means over the pairs that were run), signal_fraction (their share).
    """
    processes = processes or Processes()
    num_trajectories, num_steps, _ = advantages.shape
    shares = deal(num_trajectories, config.num_updates, processes.count)
    plans = [_plan(advantages, shares, first, config, processes.index) for first in range(config.num_updates)]
    local = advantages[padded(shares, processes.index)]
    velocities_old = _acting_velocities(policy, rollout, local, plans, config)
    statistics, grad_norms = [], []
    for first, (plan, velocities) in enumerate(zip(plans, velocities_old, strict=True)):
        if not plan:
            grad_norms.append(torch.zeros((), device=policy.device))
            continue
        num_pairs = len(range(first, num_trajectories, config.num_updates)) * num_steps
        optimizer.zero_grad(set_to_none=True)
        for call, velocity_old in zip(plan, velocities, strict=True):
            batch = gather(rollout, local, call.pairs)
            with nullcontext() if call is plan[-1] else processes.accumulating(policy.network):
                out = pair_loss(policy, batch, velocity_old, config.clip_range, config.beta, config.training_guidance)
                loss = out.loss * (call.num_counted / num_pairs)
                processes.backward(loss)
            per_pair = torch.stack([out.kl, out.clip_fraction, out.log_ratio.square().mean()])
            statistics.append(torch.cat([loss.detach().view(1), per_pair * call.num_counted]))
        grad_norms.append(processes.clip_grad_norm(policy.parameters(), config.max_grad_norm))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    num_signal = len(signal_pairs(advantages, torch.arange(num_trajectories)))
    totals = processes.sum(torch.stack(statistics).sum(dim=0) if statistics else torch.zeros(4))
    return _metrics(totals, grad_norms, num_signal, num_trajectories * num_steps)


@dataclass(frozen=True, eq=False)
class _Call:
    """One training call of this process."""

    pairs: Tensor
    """(row of the rollout, branch index), int64 [R, 2]."""
    num_counted: int
    """R; or 0, where a row is run only because the other processes make a call: collectives need all of them."""


def _plan(advantages: Tensor, shares: list[list[int]], first: int, config: GRPOConfig, index: int) -> list[_Call]:
    """The calls of process `index` in update `first`, as many as any process makes; all of them know all advantages."""
    parts = [[n for n in share if n % config.num_updates == first] for share in shares]
    pairs = [signal_pairs(advantages, torch.tensor(part, dtype=torch.int64)) for part in parts]
    num_calls = max(len(equal_pieces(len(rows), config.micro_batch)) for rows in pairs)
    own = pairs[index]
    own[:, 0] = torch.searchsorted(torch.tensor(shares[index], dtype=torch.int64), own[:, 0].contiguous())
    pieces = [own[rows] for rows in equal_pieces(len(own), config.micro_batch, at_least=num_calls)]
    padding = torch.zeros(1, 2, dtype=torch.int64)
    return [_Call(piece if len(piece) else padding, len(piece)) for piece in pieces]


def _acting_velocities(
    policy: Policy, rollout: Rollout, advantages: Tensor, plans: list[list[_Call]], config: GRPOConfig
) -> list[list[Tensor | None]]:
    """velocity_old of every call: None in the first update, which starts from the policy that acted.

    The others are evaluated here, before any update, in the micro-batches that training will use.
    """
    first, *later = plans
    return [[None] * len(first)] + [
        [acting_velocity(policy, gather(rollout, advantages, call.pairs), config.training_guidance) for call in plan]
        for plan in later
    ]


def _metrics(totals: Tensor, grad_norms: list[Tensor], num_signal: int, num_possible: int) -> dict[str, Tensor]:
    """Sums over all calls of (loss, kl, clip fraction, squared log-ratio) -> named means."""
    loss, *per_pair = totals
    kl, clip_fraction, square = (total / max(num_signal, 1) for total in per_pair)
    return {
        "loss": loss / len(grad_norms),
        "kl": kl,
        "clip_fraction": clip_fraction,
        "log_ratio_rms": square.sqrt(),
        "grad_norm": torch.stack(grad_norms).mean(),
        "signal_fraction": torch.tensor(num_signal / num_possible),
    }
