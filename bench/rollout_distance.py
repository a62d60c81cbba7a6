"""How far a cheaper rollout is from the full one on the same noise: latents, images, rewards, ranks, gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tempflow_fast import GRPOConfig, group_advantages, ops, rollout
from tempflow_fast.grpo import gate
from tempflow_fast.grpo.acting import acting_network
from tempflow_fast.grpo.update import update
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.policies.compiled import compile_blocks
from tempflow_fast.rewards import Reward

from .op_cases import COMPILES

Prompts = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Distance:
    """Of one rollout from the full one."""

    rollout: str
    latents: float
    """Root mean square of the difference of the finished latents, over that of the latents."""
    pixels: float
    """Root mean square of the difference of the images, whose values are in 0..1."""
    reward: float
    """Mean absolute difference of an image's reward."""
    reward_mean: float
    """Difference of the mean rewards."""
    rank_correlation: float
    """Spearman's, of the rewards within seed groups; mean over the groups with a spread in both rollouts."""
    gradient_cosine: float
    """Between the gradients of an iteration's whole loss."""


def distances(
    policy: DiffusersPolicy, prompts: Prompts, reward: Reward, config: GRPOConfig, seed: int = 0
) -> list[Distance]:
    """Rollouts of an iteration in bf16, 8 bits, compiled, and both, next to two measures of what counts as near.

    These are rows cut into other calls, which change last bits, and other noise, the difference from one iteration
    to the next.
    """
    config = replace(config, num_updates=1, max_grad_norm=math.inf)
    low = replace(config, rollout_precision="bf16")
    compiled = copy.deepcopy(policy)
    compile_blocks(compiled.network)
    full = _Drawn(policy, prompts, reward, config, seed)
    cases = {
        "bf16": (policy, low, seed),
        "int8": (policy, replace(config, rollout_precision="int8"), seed),
        "compiled": (compiled, config, seed),
        "bf16, compiled": (compiled, low, seed),
        "other pieces": (policy, replace(config, max_batch=(config.max_batch or 64) // 2), seed),
        "other noise": (policy, config, seed + 1),
    }
    return [
        _distance(name, _Drawn(acting, prompts, reward, *rest), full)
        for name, (acting, *rest) in cases.items()
        if COMPILES or "compiled" not in name
    ]


class _Drawn:
    """A rollout with its images, rewards [N, B, K] and gradient."""

    def __init__(
        self, policy: DiffusersPolicy, prompts: Prompts, reward: Reward, config: GRPOConfig, seed: int
    ) -> None:
        owners = [entry for entry in prompts for _ in range(config.num_seeds)]
        names, ids, scale = [entry["prompt"] for entry in owners], torch.arange(len(owners)), config.guidance_scale
        condition, table = policy.encode(names, guided=policy.guides(scale)), config.table(policy)
        noise = ops.initial_noise(policy.latent_shape, seed, ids, policy.device)
        with acting_network(policy, config):
            drawn = rollout(policy, condition, table, noise, config.num_branches, seed, ids, config.max_batch, scale)
        self.latents = drawn.latents
        shape = drawn.latents.shape[:3]
        repeats = math.prod(shape[1:])
        self.images = torch.cat([policy.decode(latents) for latents in drawn.latents.flatten(0, 2).split(64)])
        self.rewards = reward(
            self.images, [name for name in names for _ in range(repeats)], [e for e in owners for _ in range(repeats)]
        ).view(shape)
        advantages = group_advantages(self.rewards, "seed", ids, config.adv_eps, config.adv_clip)
        self.gradient = _gradient(policy, drawn, advantages, config)


def _gradient(policy: DiffusersPolicy, drawn: Any, advantages: Tensor, config: GRPOConfig) -> Tensor:
    """What one step of plain descent, of length 1, takes off the weights, on a copy of them."""
    copied = copy.deepcopy(policy)
    before = torch.cat([parameter.detach().flatten() for parameter in copied.parameters()])
    update(copied, drawn, advantages, torch.optim.SGD(copied.parameters(), lr=1.0), config)
    return before - torch.cat([parameter.detach().flatten() for parameter in copied.parameters()])


def _distance(name: str, drawn: _Drawn, full: _Drawn) -> Distance:
    def rms(tensor: Tensor) -> float:
        return tensor.double().square().mean().sqrt().item()

    difference = drawn.rewards.double() - full.rewards.double()
    return Distance(
        rollout=name,
        latents=rms(drawn.latents - full.latents) / rms(full.latents),
        pixels=rms(drawn.images - full.images),
        reward=difference.abs().mean().item(),
        reward_mean=difference.mean().item(),
        rank_correlation=rank_correlation(drawn.rewards, full.rewards),
        gradient_cosine=torch.cosine_similarity(drawn.gradient, full.gradient, dim=0).item(),
    )


def rank_correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's correlation of [..., K] values along K, mean over groups with a spread."""
    ranks = gate.rank_correlation(left.flatten(0, -2), right.flatten(0, -2))
    return ranks[~ranks.isnan()].mean().item()


def shapes_distances() -> list[Distance]:
    """Of the packaged pipeline, as the recipe `shapes` starts from it."""
    from tempflow_fast.prompts.sets import get_prompts
    from tempflow_fast.rewards import get_reward
    from tempflow_fast.run.prepare import prepare_policy
    from tempflow_fast.settings.recipes import get_recipe

    config = get_recipe("shapes")
    prompts = get_prompts("shapes", None, "prompt").training(0, config.task.prompts_per_iteration, 0)
    return distances(prepare_policy(config.policy), prompts, get_reward("shapes"), config.grpo)
