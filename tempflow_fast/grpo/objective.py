"""Velocity -> loss, for a micro-batch of (trajectory, branch step) pairs.

The K branches of a pair left the trunk at one state, so one network row serves them all: forward, backward and stored
activations do not grow with K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..ops.schedule import StepTable
from ..policies.base import Condition, Policy
from ..policies.evaluated import evaluated
from .rollout import Rollout


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """R pairs that share one network call, each at the sigma of its own step."""

    latents: Tensor
    """[R, *shape]"""
    branches: Tensor
    """[R, K, *shape]"""
    advantages: Tensor
    """[R, K]"""
    steps: Tensor
    """int64 [R]"""
    sigma: Tensor
    """[R], dtype of the latents"""
    condition: Condition
    """[R] rows"""
    table: StepTable
    weight: float = 1.0
    """Of each pair in the mean over pairs."""

    def __len__(self) -> int:
        return len(self.latents)


def gather(rollout: Rollout, advantages: Tensor, pairs: Tensor) -> MicroBatch:
    """Some pairs of a rollout, all with the same K and the same weight.

    Args:
        rollout: holds the pairs.
        advantages: of all its branches, flat [R], on the host.
        pairs: int64 [n] on the host, positions in the list of pairs.
    """
    own = rollout.branch_list
    rows = own.first_rows[pairs][:, None] + torch.arange(int(own.counts[pairs[0]]))
    device, dtype = rollout.flat_states.device, rollout.flat_states.dtype

    def there(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return tensor.to(device, dtype, non_blocking=True)  # a waiting copy would empty the device's queue

    steps = own.steps[pairs]
    return MicroBatch(
        latents=rollout.flat_states[there(pairs)],
        branches=rollout.flat_branches[there(rows)],
        advantages=there(advantages[rows]),
        steps=there(steps),
        sigma=there(rollout.table.sigma[steps], dtype),
        condition=rollout.condition[own.trajectories[pairs]],
        table=rollout.table,
        weight=float(own.weights[pairs[0]]),
    )


@torch.no_grad()
def current_velocity(policy: Policy, batch: MicroBatch, guidance_scale: float) -> Tensor:
    """The guided velocity [R, *shape] of the policy as it is now, without a graph."""
    velocity, uncond = evaluated(policy, batch.latents, batch.sigma, batch.condition, guidance_scale)
    return _guided(velocity, uncond, guidance_scale)


def micro_batch_loss(
    policy: Policy,
    batch: MicroBatch,
    velocity_old: Tensor | None,
    clip_range: float,
    beta: float,
    guidance_scale: float,
) -> ops.PolicyLoss:
    """Loss of a micro-batch: mean over R and K of the clipped, noise-weighted objective, plus beta times the KL.

    Args:
        policy: the policy to train; the returned loss is differentiable in its parameters.
        batch: R pairs.
        velocity_old: [R, *shape], the guided velocity of the policy that acted, from `current_velocity` on this very
            micro-batch: network rows of another batch shape may differ in their last bits. None: the policy has not
            changed since it acted, so its own velocity serves, and no forward is needed.
        clip_range: c in clip(r, 1 - c, 1 + c).
        beta: weight of the KL to `policy.reference()`; 0 leaves the reference alone.
        guidance_scale: that of training, `config.training_guidance`; `velocity_old` was computed with the same one.
    """
    velocity_ref = None
    if beta > 0:
        with policy.reference():
            velocity_ref = current_velocity(policy, batch, guidance_scale)
    velocity, uncond = evaluated(policy, batch.latents, batch.sigma, batch.condition, guidance_scale)
    if velocity_old is None:
        velocity_old = _guided(velocity.detach(), None if uncond is None else uncond.detach(), guidance_scale)
    return ops.policy_loss(
        velocity,
        batch.latents,
        batch.branches,
        velocity_old,
        batch.advantages,
        batch.table,
        batch.steps,
        clip_range=clip_range,
        velocity_ref=velocity_ref,
        beta=beta,
        velocity_uncond=uncond,
        guidance_scale=1.0 if uncond is None else guidance_scale,
    )


def _guided(velocity: Tensor, uncond: Tensor | None, guidance_scale: float) -> Tensor:
    # The op rounds exactly as policy_loss does inside, so that an unchanged policy has log_ratio exactly 0.
    return velocity if uncond is None else ops.guided_velocity(velocity, uncond, guidance_scale)
