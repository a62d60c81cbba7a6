"""One iteration at a fixed policy -> the gradient of every branch step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..batching import equal_pieces
from ..grpo.acting import Acted, act
from ..grpo.advantages import group_spreads
from ..grpo.attention import without_cudnn_attention
from ..grpo.branches import Branches
from ..grpo.objective import gather, micro_batch_loss
from ..grpo.shares import Shares
from ..grpo.sketch import Sketch
from ..grpo.stage_clock import StageClock
from ..policies.base import Policy
from ..processes import Processes
from ..rewards import WeightedReward
from ..settings.iteration import GRPOConfig


@dataclass(frozen=True, eq=False)
class Sample:
    """One iteration of one setting."""

    gradients: dict[int, Tensor]
    """Branch step -> its sketched gradient, float32 [size]."""
    spread: dict[int, float]
    """Branch step -> mean standard deviation of the rewards in a group; NaN where a reward belongs to all steps."""
    reward: float
    """Mean."""
    seconds: float


def sample(
    policy: Policy,
    entries: Sequence[Mapping[str, Any]],
    reward: WeightedReward,
    config: GRPOConfig,
    seed: int,
    sketch: Sketch,
) -> Sample:
    """Runs one iteration without an update.

    Args:
        policy: the policy; it does not change.
        entries: the prompts, as `{"prompt": text, ...}`; the other fields are metadata for the reward.
        reward: the reward.
        config: the settings.
        seed: key of all noise of the iteration.
        sketch: what is kept of a gradient.
    """
    start = time.monotonic()
    chosen = [dict(entry) for entry in entries for _ in range(config.num_seeds)]
    texts, shares = [entry["prompt"] for entry in chosen], Shares(len(chosen), 1)
    acted = act(policy, reward, texts, chosen, config.table(policy), config, seed, shares, Processes(), StageClock())
    gradients = step_gradients(policy, acted, config, sketch)
    mean = acted.scored.rewards.total.mean().item()
    return Sample(gradients, _spread(acted, config), mean, time.monotonic() - start)


@without_cudnn_attention()
def step_gradients(policy: Policy, acted: Acted, config: GRPOConfig, sketch: Sketch) -> dict[int, Tensor]:
    """The part of each branch step in the gradient of an iteration's loss; the parts add up to the gradient.

    Args:
        policy: the policy that acted; its weights and their gradients stay as they are.
        acted: what it drew, and the advantages.
        config: the settings; the loss is that of a first update with all trajectories in it.
        sketch: what is kept of a gradient.

    Returns:
        Branch step -> float32 [sketch.size] on the host.
    """
    branches, parameters, found = acted.branches, policy.parameters(), {}
    with _gradients_kept_aside(parameters):
        for step in branches.steps.unique().tolist():
            for pairs in _calls(branches, step, config.micro_batch):
                batch = gather(acted.rollout, acted.advantages, pairs)
                out = micro_batch_loss(policy, batch, None, config.clip_range, config.beta, config.training_guidance)
                (out.loss * (batch.weight * len(batch) / branches.num_pairs)).backward()
            found[step] = sketch((torch.zeros_like(p) if p.grad is None else p.grad).cpu() for p in parameters)
            _clear(parameters)
    return found


def _calls(branches: Branches, step: int, micro_batch: int | None) -> Iterator[Tensor]:
    """The pairs of a step, in training calls of pairs with the same K and weight."""
    for kind in branches.kinds:
        pairs = (kind & (branches.steps == step)).nonzero().flatten()
        yield from (pairs[piece] for piece in equal_pieces(len(pairs), micro_batch) if len(pairs[piece]))


def _clear(parameters: Sequence[Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


@contextmanager
def _gradients_kept_aside(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Inside this context the parameters have no gradients; afterwards, those of before."""
    kept = [parameter.grad for parameter in parameters]
    _clear(parameters)
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def _spread(acted: Acted, config: GRPOConfig) -> dict[int, float]:
    """Branch step -> mean standard deviation of the rewards in a group; NaN where a reward belongs to all steps."""
    branches = acted.branches
    steps = branches.steps.unique().tolist()
    if config.trunk == "sde":
        return dict.fromkeys(steps, math.nan)
    spreads = group_spreads(acted.scored.rewards.total, config, branches)
    return {step: spreads[branches.steps == step].mean().item() for step in steps}
