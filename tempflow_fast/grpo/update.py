"""Rollout, advantages -> optimizer steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..batching import equal_pieces
from ..errors import fail, instance, require
from ..policies.base import Policy, check_policy
from ..processes import Processes
from ..settings.iteration import GRPOConfig
from .attention import without_cudnn_attention
from .branches import Branches
from .finite_step import step_if_finite
from .meter import StepMeter, measured_groups
from .objective import current_velocity, gather, micro_batch_loss
from .rollout import Rollout
from .rounding import warn_of_rounding
from .shares import Shares
from .trainable import check_trainable


@without_cudnn_attention()
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
    run, and an update without any signal leaves the policy and the optimizer unchanged. So does an update whose
    gradient or loss is infinite or NaN: it is skipped, in all processes.

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
        log_ratio_rms (means over the pairs that were run), all without skipped updates and NaN if there are no others;
        signal_fraction (the share of pairs that were run), skipped_updates (their number). With `branch_budget`, what
        `StepMeter.metrics` finds.

    Raises:
        ValueError: if the rollout does not hold the trajectories of `shares`, or the advantages do not fit `branches`.
    """
    check_policy("update", policy, "velocity", "parameters", "reference")
    instance("update", "rollout", rollout, Rollout, "what `rollout` returns")
    instance("update", "advantages", advantages, Tensor, "a tensor")
    check_training("update", policy, optimizer, config)
    warn_of_rounding(policy)
    processes = processes or Processes()
    branches = branches or rollout.branch_list
    shares = shares or Shares(branches.num_trajectories, config.num_updates)
    held, flat = rollout.branch_list, advantages.flatten()
    if held.num_trajectories != len(shares.carried):
        fail("update", "rollout", f"one of {len(shares.carried)} trajectories, see shares", held.num_trajectories)
    if len(flat) != branches.num_rows:
        fail("update", "advantages", f"of {branches.num_rows} branches", list(advantages.shape))
    has_signal = pairs_with_signal(flat, branches)
    plans = training_plans(has_signal, branches, shares, config)
    meter = None if config.branch_budget is None else StepMeter(policy.parameters(), branches, config)
    local = flat[branches.rows_of(shares.carried)]
    velocities_old = _old_velocities(policy, rollout, local, plans, config)
    totals, grad_norms, num_trained = [], [], []
    for number, (plan, velocities) in enumerate(zip(plans, velocities_old, strict=True)):
        pairs = branches.pairs_of(shares.in_update(number))
        num_trained.append(int(has_signal[pairs].sum()))
        if not plan:
            totals.append(torch.zeros(4, device=policy.device))
            grad_norms.append(torch.zeros((), device=policy.device))
            continue
        statistics = []
        optimizer.zero_grad(set_to_none=True)
        for call, velocity_old in zip(plan, velocities, strict=True):
            batch = gather(rollout, local, call.pairs)
            with nullcontext() if call.ends_group else processes.accumulating(policy.network):
                out = micro_batch_loss(
                    policy, batch, velocity_old, config.clip_range, config.beta, config.training_guidance
                )
                loss = out.loss * (batch.weight * call.num_rows_in_loss / len(pairs))
                processes.backward(loss * _nan_unless_finite(loss))
            per_pair = torch.stack([out.kl, out.clip_fraction, out.log_ratio.square().mean()])
            statistics.append(torch.cat([loss.detach().view(1), per_pair * call.num_rows_in_loss]))
            if meter is not None and call.ends_group:
                meter.note(number, call.group)
        totals.append(torch.stack(statistics).sum(dim=0))
        grad_norms.append(processes.clip_grad_norm(policy.parameters(), config.max_grad_norm))
        step_if_finite(optimizer, grad_norms[-1])
    optimizer.zero_grad(set_to_none=True)
    sums = processes.sum(torch.stack(totals))
    metrics = _metrics(sums, torch.stack(grad_norms), torch.tensor(num_trained), has_signal.numel())
    return metrics if meter is None else {**metrics, **meter.metrics()}


def check_training(function: str, policy: Policy, optimizer: Any, config: object) -> None:
    """Refuses an optimizer or settings of another kind, and what would give wrong updates.

    Gradients that no optimizer clears would add up from update to update, and clipping would divide by their norm.

    Args:
        function: the caller, for the error.
        policy: to train.
        optimizer: what was given for an optimizer.
        config: what was given for a `GRPOConfig`.

    Raises:
        ValueError: naming the argument.
    """
    instance(function, "config", config, GRPOConfig, "a GRPOConfig")
    instance(function, "optimizer", optimizer, Optimizer, "an optimizer of torch.optim")
    check_trainable(function, policy)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {id(parameter) for parameter in policy.parameters()}
    expected = "one that holds all of policy.parameters(); requires_grad_(False) leaves weights out of these"
    fits = bool(trained) and trained <= held
    require(fits, function, "optimizer", expected, f"one with {len(trained & held)} of {len(trained)}")


def _nan_unless_finite(loss: Tensor) -> Tensor:
    """1 for a finite loss, else NaN: as a factor it makes the gradient, which all processes share, tell of the loss."""
    return 1 + 0 * loss.detach()


@dataclass(frozen=True, eq=False)
class TrainingCall:
    """One training call of this process."""

    pairs: Tensor
    """Positions in the rollout's list of pairs, int64 [R]; all with the same K and weight."""
    num_rows_in_loss: int
    """R; 0 for a dummy row, run only to match the calls of other processes: collectives need all of them."""
    group: int = 0
    """Whose gradient it belongs to, where the gradients of groups of pairs are measured."""
    ends_group: bool = False
    """Whether all processes sum their gradients after it."""

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


def training_plans(
    has_signal: Tensor, branches: Branches, shares: Shares, config: GRPOConfig
) -> list[list[TrainingCall]]:
    """The calls of this process in every update, one group of pairs after the other.

    Args:
        has_signal: bool [G], the pairs to run.
        branches: of all processes.
        shares: which trajectories are this process's.
        config: the settings; with `branch_budget`, the groups are those of `measured_groups`, else there is one.
    """
    plans = []
    for number in range(config.num_updates):
        everything = [torch.ones_like(has_signal)]
        groups = everything if config.branch_budget is None else measured_groups(branches, config, number)
        plan = []
        for index, group in enumerate(groups):
            calls = training_plan(has_signal & group, branches, shares, number, config.micro_batch)
            plan += [replace(call, group=index, ends_group=call is calls[-1]) for call in calls]
        plans.append(plan)
    return plans


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


def _metrics(totals: Tensor, grad_norms: Tensor, num_pairs: Tensor, num_possible: int) -> dict[str, Tensor]:
    """Per update, sums over its calls of (loss, kl, clip fraction, squared log-ratio) -> named means.

    Args:
        totals: [num_updates, 4].
        grad_norms: [num_updates].
        num_pairs: [num_updates] on the host, pairs with a signal.
        num_possible: pairs of all updates.
    """
    taken = grad_norms.isfinite()
    of_taken = torch.cat([totals, grad_norms[:, None]], dim=1).masked_fill(~taken[:, None], 0)
    loss, kl, clip_fraction, square, norm = of_taken.sum(0) / taken.any()
    num_taken, pairs_taken = taken.sum(), (taken * num_pairs.to(taken.device, non_blocking=True)).sum().clamp(min=1)
    return {
        "loss": loss / num_taken,
        "kl": kl / pairs_taken,
        "clip_fraction": clip_fraction / pairs_taken,
        "log_ratio_rms": (square / pairs_taken).sqrt(),
        "grad_norm": norm / num_taken,
        "signal_fraction": num_pairs.sum() / num_possible,
        "skipped_updates": (~taken).sum(),
    }
