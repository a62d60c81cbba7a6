"""Rollout, advantages -> optimizer steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..batching import equal_pieces
from ..errors import fail
from ..policies.base import Policy
from ..processes import Processes
from ..settings.iteration import GRPOConfig
from .objective import current_velocity, gather, micro_batch_loss
from .rollout import Rollout
from .shares import Shares


def update(
    policy: Policy,
    rollout: Rollout,
    advantages: Tensor,
    optimizer: Optimizer,
    config: GRPOConfig,
    processes: Processes | None = None,
    shares: Shares | None = None,
) -> dict[str, Tensor]:
    """Trains the policy on a rollout, `config.num_updates` optimizer steps.

    Trajectory n belongs to update n % num_updates with all its steps and branches, so a prompt with `num_updates` or
    more seeds is in every update. An update's loss is the mean over all its (trajectory, branch step) pairs, in
    whichever process they are. Pairs whose advantages are all 0 are not run, and an update without any signal leaves
    the policy and the optimizer unchanged.

    Args:
        policy: the policy that acted, unchanged since.
        rollout: the trajectories that this process carries, see `Shares.carried`.
        advantages: [N, B, K] of all processes, on the host.
        optimizer: holds the policy's parameters; its gradients are cleared.
        config: the settings.
        processes: who shares the update; None: this process alone.
        shares: which process has which trajectories; None: this process has all.

    Returns:
        Scalar tensors, equal in all processes: loss and grad_norm (means over updates), kl, clip_fraction and
        log_ratio_rms (means over the pairs that were run), signal_fraction (the share of pairs that were run).

    Raises:
        ValueError: if the rollout does not hold the trajectories of `shares`.
    """
    processes = processes or Processes()
    num_trajectories, num_branch_steps, _ = advantages.shape
    shares = shares or Shares(num_trajectories, config.num_updates)
    if len(rollout.states) != len(shares.carried):
        fail("update", "rollout", f"one of {len(shares.carried)} trajectories, see shares", len(rollout.states))
    has_signal = (advantages != 0).any(dim=-1)
    plans = [
        _plan(signal_pairs(has_signal, shares, number), shares.index, config.micro_batch)
        for number in range(config.num_updates)
    ]
    local = advantages[shares.carried]
    velocities_old = _old_velocities(policy, rollout, local, plans, config)
    statistics, grad_norms = [], []
    for number, (plan, velocities) in enumerate(zip(plans, velocities_old, strict=True)):
        if not plan:
            grad_norms.append(torch.zeros((), device=policy.device))
            continue
        num_pairs = len(shares.in_update(number)) * num_branch_steps
        optimizer.zero_grad(set_to_none=True)
        for call, velocity_old in zip(plan, velocities, strict=True):
            batch = gather(rollout, local, call.pairs)
            with nullcontext() if call is plan[-1] else processes.accumulating(policy.network):
                out = micro_batch_loss(
                    policy, batch, velocity_old, config.clip_range, config.beta, config.training_guidance
                )
                loss = out.loss * (call.num_rows_in_loss / num_pairs)
                processes.backward(loss)
            per_pair = torch.stack([out.kl, out.clip_fraction, out.log_ratio.square().mean()])
            statistics.append(torch.cat([loss.detach().view(1), per_pair * call.num_rows_in_loss]))
        grad_norms.append(processes.clip_grad_norm(policy.parameters(), config.max_grad_norm))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    totals = processes.sum(torch.stack(statistics).sum(dim=0) if statistics else torch.zeros(4))
    return _metrics(totals, grad_norms, int(has_signal.sum()), has_signal.numel())


@dataclass(frozen=True, eq=False)
class _Call:
    """One training call of this process."""

    pairs: Tensor
    """(row of the rollout, index of the branch step), int64 [R, 2]."""
    num_rows_in_loss: int
    """R; 0 for a dummy row, run only to match the calls of other processes: collectives need all of them."""


def signal_pairs(has_signal: Tensor, shares: Shares, number: int) -> list[list[tuple[int, int]]]:
    """The pairs with a signal in one update, per process.

    A pair is (row among the process's own trajectories, index of the branch step).

    Args:
        has_signal: bool [N, B] on the host; all processes know all of it.
        shares: which process has which trajectories.
        number: the update.
    """
    own_update, signal = set(shares.in_update(number)), has_signal.tolist()
    return [
        [
            (row, column)
            for row, n in enumerate(share)
            if n in own_update
            for column, runs in enumerate(signal[n])
            if runs
        ]
        for share in shares.by_process
    ]


def _plan(pairs: list[list[tuple[int, int]]], index: int, micro_batch: int | None) -> list[_Call]:
    """The calls of process `index` for its pairs, at most `micro_batch` in one; as many as any process makes."""
    num_calls = max(len(equal_pieces(len(rows), micro_batch)) for rows in pairs)
    own = torch.tensor(pairs[index], dtype=torch.int64).view(-1, 2)
    pieces = [own[rows] for rows in equal_pieces(len(own), micro_batch, at_least=num_calls)]
    padding = torch.zeros(1, 2, dtype=torch.int64)
    return [_Call(piece if len(piece) else padding, len(piece)) for piece in pieces]


def _old_velocities(
    policy: Policy, rollout: Rollout, advantages: Tensor, plans: list[list[_Call]], config: GRPOConfig
) -> list[list[Tensor | None]]:
    """velocity_old of every call: None in the first update, which starts from the policy that acted.

    The others are evaluated here, before any update, in the micro-batches that training will use.
    """
    first, *later = plans
    unneeded: list[Tensor | None] = [None] * len(first)
    return [unneeded] + [
        [current_velocity(policy, gather(rollout, advantages, call.pairs), config.training_guidance) for call in plan]
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
