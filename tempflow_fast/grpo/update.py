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
from .branches import Branches
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
    branches: Branches | None = None,
) -> dict[str, Tensor]:
    """Trains the policy on a rollout, `config.num_updates` optimizer steps.

    Trajectory n belongs to update n % num_updates with all its steps and branches, so a prompt with `num_updates` or
    more seeds is in every update. An update's loss is the weighted mean over all its (trajectory, branch step) pairs,
    in whichever process they are; a pair's loss is the mean over its branches. Pairs whose advantages are all 0 are not
    run, and an update without any signal leaves the policy and the optimizer unchanged.

    Args:
        policy: the policy that acted, unchanged since.
        rollout: the trajectories that this process carries, see `Shares.carried`.
        advantages: of all processes, [N, B, K] or flat [R] in the order of `branches`, on the host.
        optimizer: holds the policy's parameters; its gradients are cleared.
        config: the settings.
        processes: who shares the update; None: this process alone.
        shares: which process has which trajectories; None: this process has all.
        branches: the list of all processes; None: that of the rollout, since this process has all.

    Returns:
        Scalar tensors, equal in all processes: loss and grad_norm (means over updates), kl, clip_fraction and
        log_ratio_rms (means over the pairs that were run), signal_fraction (the share of pairs that were run).

    Raises:
        ValueError: if the rollout does not hold the trajectories of `shares`, or the advantages do not fit `branches`.
    """
    processes = processes or Processes()
    branches = branches or rollout.branch_list
    shares = shares or Shares(branches.num_trajectories, config.num_updates)
    held, flat = rollout.branch_list, advantages.flatten()
    if held.num_trajectories != len(shares.carried):
        fail("update", "rollout", f"one of {len(shares.carried)} trajectories, see shares", held.num_trajectories)
    if len(flat) != branches.num_rows:
        fail("update", "advantages", f"of {branches.num_rows} branches", list(advantages.shape))
    has_signal = pairs_with_signal(flat, branches)
    plans = [
        training_plan(has_signal, branches, shares, number, config.micro_batch) for number in range(config.num_updates)
    ]
    local = flat[branches.rows_of(shares.carried)]
    velocities_old = _old_velocities(policy, rollout, local, plans, config)
    statistics, grad_norms = [], []
    for number, (plan, velocities) in enumerate(zip(plans, velocities_old, strict=True)):
        if not plan:
            grad_norms.append(torch.zeros((), device=policy.device))
            continue
        num_pairs = len(branches.pairs_of(shares.in_update(number)))
        optimizer.zero_grad(set_to_none=True)
        for call, velocity_old in zip(plan, velocities, strict=True):
            batch = gather(rollout, local, call.pairs)
            with nullcontext() if call is plan[-1] else processes.accumulating(policy.network):
                out = micro_batch_loss(
                    policy, batch, velocity_old, config.clip_range, config.beta, config.training_guidance
                )
                loss = out.loss * (batch.weight * call.num_rows_in_loss / num_pairs)
                processes.backward(loss)
            per_pair = torch.stack([out.kl, out.clip_fraction, out.log_ratio.square().mean()])
            statistics.append(torch.cat([loss.detach().view(1), per_pair * call.num_rows_in_loss]))
        grad_norms.append(processes.clip_grad_norm(policy.parameters(), config.max_grad_norm))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    totals = processes.sum(torch.stack(statistics).sum(dim=0) if statistics else torch.zeros(4))
    return _metrics(totals, grad_norms, int(has_signal.sum()), has_signal.numel())


@dataclass(frozen=True, eq=False)
class TrainingCall:
    """One training call of this process."""

    pairs: Tensor
    """Positions in the rollout's list of pairs, int64 [R]; all with the same K and weight."""
    num_rows_in_loss: int
    """R; 0 for a dummy row, run only to match the calls of other processes: collectives need all of them."""

    def __len__(self) -> int:
        return self.num_rows_in_loss


def pairs_with_signal(advantages: Tensor, branches: Branches) -> Tensor:
    """Whether any branch of a pair has an advantage, bool [G].

    Args:
        advantages: flat [R], on the host.
        branches: the list.
    """
    return torch.zeros(branches.num_pairs).index_add(0, branches.pair_of_row, (advantages != 0).float()) > 0


def training_plan(
    has_signal: Tensor, branches: Branches, shares: Shares, number: int, micro_batch: int | None
) -> list[TrainingCall]:
    """The calls of this process in one update, as many as any process makes.

    Args:
        has_signal: bool [G], the pairs to run.
        branches: of all processes.
        shares: which trajectories are this process's.
        number: the update.
        micro_batch: most pairs in one call; None: no limit.
    """
    in_update = torch.zeros(branches.num_trajectories, dtype=torch.bool)
    in_update[list(shares.in_update(number))] = True
    runs = has_signal & in_update[branches.trajectories]
    calls = []
    for kind in branches.kinds:
        counts = [int((runs & kind)[branches.pairs_of(share)].sum()) for share in shares.by_process]
        num_calls = max(len(equal_pieces(count, micro_batch)) for count in counts)
        own = (runs & kind)[branches.pairs_of(shares.own)].nonzero().flatten()
        pieces = [own[rows] for rows in equal_pieces(len(own), micro_batch, at_least=num_calls)]
        calls += [
            TrainingCall(piece if len(piece) else torch.zeros(1, dtype=torch.int64), len(piece)) for piece in pieces
        ]
    return calls


def _old_velocities(
    policy: Policy, rollout: Rollout, advantages: Tensor, plans: list[list[TrainingCall]], config: GRPOConfig
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
