"""The first half of an iteration: prompts -> branches, their rewards and advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import require
from ..graphs.replay import graphs_of
from ..ops.schedule import StepTable
from ..policies.base import Condition, Policy, encoded
from ..policies.merged import merged_weights, merges
from ..policies.quantized import quantized
from ..processes import Processes
from ..rewards import WeightedReward
from ..settings.iteration import GRPOConfig, RolloutPrecision
from .advantages import advantages_of
from .branches import Branches
from .chain import chain_rollout
from .draw import drawn_branches
from .gate import gate_metrics, gated_trajectories
from .rollout import Rollout, rollout
from .scoring import RolloutScorer, Scored
from .shares import Shares
from .stage_clock import StageClock
from .tails import tails_of
from .wavefront import least_calls, process_waves


@dataclass(frozen=True, eq=False)
class Acted:
    """What the policy drew in an iteration, and what it is worth."""

    rollout: Rollout
    """The trajectories that this process carries."""
    branches: Branches
    """The list of all processes."""
    images: Branches
    """The list of what was finished and scored: the same, or one per trajectory where the noise stays in the trunk."""
    scored: Scored
    """Of all processes."""
    advantages: Tensor
    """Of all processes, flat [R] in the order of `branches`, on the host."""
    gate: dict[str, Tensor]
    """What `gate_metrics` found, if this iteration has a gate."""


def act(
    policy: Policy,
    reward: WeightedReward,
    texts: Sequence[str],
    metadata: Sequence[dict[str, Any]],
    table: StepTable,
    config: GRPOConfig,
    seed: int,
    shares: Shares,
    processes: Processes,
    clock: StageClock,
) -> Acted:
    """Draws branches from N trajectories and scores them; nothing is trained.

    Args:
        policy: the acting policy.
        reward: called while later branches are still computed.
        texts: the prompt of each trajectory, N in all processes together.
        metadata: for the reward, one per trajectory.
        table: `config.table(policy)`.
        config: the settings.
        seed: key of all noise.
        shares: which process has which trajectories.
        processes: who shares the iteration.
        clock: gets the times of the stages.

    Raises:
        RewardError: if a reward failed.
        ValueError: if the policy makes videos, and a reward does not take them.
    """
    expected = "'uniform', or positions as nearest_levels(config, policy, prompts).applied(config) has them"
    require(config.tail_levels != "nearest", "grpo_step", "tail_levels", expected, "'nearest'")
    if getattr(policy, "num_frames", None) is not None:
        reward.check_videos()
    branches, tails = drawn_branches(config, len(texts), seed), tails_of(config, table)
    gated = gated_trajectories(config, len(texts), seed)
    images = branches if config.trunk == "ode" else branches.last_of_each()
    checked = branches.rows_of(gated)
    waves = process_waves(branches, shares, tails, config.max_batch, checked)
    with clock.stage("encode"):
        condition, noise = start_of(policy, texts, metadata, shares.carried, config, seed)
    inputs, limit = (policy, reward, texts, metadata, shares, images, checked, processes), config.decode_batch
    with RolloutScorer(*inputs, clock.stage, limit) as scorer:
        with clock.stage("rollout"), acting_network(policy, config):
            start = (policy, condition, table, noise, waves[shares.index].branches, seed, shares.carried)
            common: dict[str, Any] = {
                "max_batch": config.max_batch,
                "guidance_scale": config.guidance_scale,
                "on_finished": scorer.finish,
            }
            if config.trunk == "sde":
                drawn = chain_rollout(*start, **common)
            else:
                drawn = rollout(
                    *start,
                    **common,
                    graphs=graphs_of(policy) if config.cuda_graphs else None,
                    tails=tails,
                    checked=waves[shares.index].checked,
                    tail_context=lambda: computing_in(policy, config.tail_precision),
                    least_calls=least_calls(waves),
                )
        scored = scorer.collect()
    clock.seconds["seconds_reward_busy"] = scored.seconds_busy
    if config.trunk == "ode":
        advantages = advantages_of(scored.rewards, config, branches)
    else:  # the reward of a trajectory belongs to all of its steps
        whole = Branches.everywhere(len(texts), {0: 1})
        advantages = advantages_of(scored.rewards, config, whole)[branches.trajectories]
    gate = {}
    if gated:
        part, both = branches.of(gated), (scored.rewards.at(checked), scored.checks)
        rewards = both[0].total, both[1].total
        gate = gate_metrics(rewards, (advantages_of(both[0], config, part), advantages_of(both[1], config, part)), part)
    return Acted(drawn, branches, images, scored, advantages, gate)


def start_of(
    policy: Policy,
    texts: Sequence[str],
    metadata: Sequence[dict[str, Any]],
    trajectory_ids: list[int],
    config: GRPOConfig,
    seed: int,
) -> tuple[Condition, Tensor]:
    """Encoded prompts and initial noise of the given trajectories.

    Args:
        policy: the acting policy.
        texts: the prompts of all trajectories.
        metadata: of all trajectories.
        trajectory_ids: which ones.
        config: the settings.
        seed: key of the noise.
    """
    prompts, entries = [texts[n] for n in trajectory_ids], [metadata[n] for n in trajectory_ids]
    condition = encoded("grpo_step", policy, prompts, entries, policy.guides(config.guidance_scale))
    return condition, ops.initial_noise(policy.latent_shape, seed, torch.tensor(trajectory_ids), policy.device)


@contextmanager
def acting_network(policy: Policy, config: GRPOConfig) -> Iterator[None]:
    """Inside this context the network computes with the weights and in the precision of the rollout."""
    merged = merges(policy.network, config.rollout_weights)
    with (
        merged_weights(policy.network) if merged else nullcontext(),
        computing_in(policy, config.rollout_precision),
    ):
        yield


@contextmanager
def computing_in(policy: Policy, precision: RolloutPrecision | None) -> Iterator[None]:
    """Inside this context the network computes in a precision; None: that of training."""
    if precision is None:
        yield
        return
    # Without the cache of casted weights: a captured call would read it after its end, and under FSDP it would hold
    # the whole network. A call casts each weight once in any case.
    with (
        torch.autocast(policy.device.type, torch.bfloat16, cache_enabled=False),
        nullcontext() if precision == "bf16" else quantized(policy.network, precision),
    ):
        yield
