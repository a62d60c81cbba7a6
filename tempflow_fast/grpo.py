"""One iteration of TempFlow-GRPO (arXiv 2508.04324): from prompts to a better policy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import ops
from .advantages import group_advantages
from .batching import equal_pieces
from .config import GRPOConfig
from .policies.base import Policy
from .rewards.base import Reward
from .rollout import Rollout, rollout
from .schedule import StepTable
from .update import update


def grpo_step(
    policy: Policy,
    prompts: Sequence[str],
    reward_fn: Reward,
    optimizer: Optimizer,
    config: GRPOConfig,
    seed: int = 0,
    metadata: Sequence[dict[str, Any]] | None = None,
    trajectory_offset: int = 0,
) -> dict[str, Tensor | float]:
    """Samples, scores and updates once.

    Args:
        policy: changed in place through `optimizer`.
        prompts: P prompts; each gets `config.num_seeds` trajectories.
        reward_fn: called once with all N B K images, in that order, on the device of the policy.
        optimizer: holds `policy.parameters()`.
        config: the settings.
        seed: key of all noise; give every iteration its own.
        metadata: P dictionaries passed on to the reward; None: empty ones.
        trajectory_offset: global id of the first trajectory, where several processes share an iteration.

    Returns:
        Scalars that stay tensors on their device, so that nothing waits for them: reward_mean, reward_std (population,
        over all rewards), group_std (mean over seed groups), signal_fraction (share of trained pairs), loss and
        grad_norm (means over updates), kl, clip_fraction and log_ratio_rms (means over trained pairs), num_calls and
        num_row_evaluations of the rollout. `seconds_<stage>` are floats for encode, rollout, decode, reward and train;
        an accelerator's queued work counts for the stage that waits for it.

    Raises:
        ValueError: naming the argument; before the rollout, unless the rewards themselves are at fault.
    """
    table, names, extras = _checked_inputs(policy, prompts, optimizer, config, metadata)
    ids = torch.arange(len(names)) + trajectory_offset
    clock = StageClock()
    with clock.stage("encode"):
        condition = policy.encode(names, guided=config.guidance_scale != 1.0)
        noise = ops.initial_noise(policy.latent_shape, seed, ids, policy.device)
    with clock.stage("rollout"):
        drawn = rollout(
            policy, condition, table, noise, config.num_branches, seed, ids, config.max_batch, config.guidance_scale
        )
    with clock.stage("decode"):
        images = _decode(policy, drawn.latents.flatten(0, 2), config.max_batch)
    with clock.stage("reward"):
        rewards = _score(reward_fn, images, names, extras, drawn.latents.shape[:3])
    with clock.stage("train"):
        prompt_ids = torch.arange(len(names)) // config.num_seeds
        advantages = group_advantages(rewards, config.group, prompt_ids, config.adv_eps, config.adv_clip)
        metrics = update(policy, drawn, advantages, optimizer, config)
    return {**_reward_metrics(rewards), **_cost_metrics(drawn), **metrics, **clock.seconds}


class StageClock:
    """Wall seconds per stage, as they pass on the host."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times its block as `seconds_<name>`."""
        start = time.perf_counter()
        yield
        self.seconds[f"seconds_{name}"] = time.perf_counter() - start


def _checked_inputs(
    policy: Policy,
    prompts: Sequence[str],
    optimizer: Optimizer,
    config: GRPOConfig,
    metadata: Sequence[dict[str, Any]] | None,
) -> tuple[StepTable, list[str], list[dict[str, Any]]]:
    """The step table, and prompt and metadata of each of the N = P S trajectories."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"grpo_step: prompts must be a list of at least one text, got {prompts!r}")
    metadata = [{} for _ in prompts] if metadata is None else metadata
    if len(metadata) != len(prompts):
        raise ValueError(f"grpo_step: metadata must have {len(prompts)} entries like prompts, got {len(metadata)}")
    num_trajectories = len(prompts) * config.num_seeds
    if config.num_updates > num_trajectories:
        raise ValueError(
            f"grpo_step: num_updates must be at most the {num_trajectories} trajectories, got {config.num_updates}"
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in policy.parameters()):
        raise ValueError("grpo_step: optimizer must hold parameters of the policy, got none of them")
    names = [prompt for prompt in prompts for _ in range(config.num_seeds)]
    extras = [entry for entry in metadata for _ in range(config.num_seeds)]
    return config.table(policy), names, extras


def _decode(policy: Policy, latents: Tensor, max_batch: int | None) -> Tensor:
    """Images [R, 3, H, W] of latents [R, *shape]."""
    return torch.cat([policy.decode(latents[rows]) for rows in equal_pieces(len(latents), max_batch)])


def _score(
    reward_fn: Reward, images: Tensor, names: list[str], extras: list[dict[str, Any]], shape: torch.Size
) -> Tensor:
    """Rewards [N, B, K], float64 on the host; the images come in that order."""
    repeats = len(images) // len(names)
    prompts = [name for name in names for _ in range(repeats)]
    metadata = [entry for entry in extras for _ in range(repeats)]
    rewards = torch.as_tensor(reward_fn(images, prompts, metadata)).detach()
    if rewards.shape != images.shape[:1]:
        raise ValueError(f"grpo_step: reward_fn must return [{len(images)}], one per image, got {list(rewards.shape)}")
    return rewards.to("cpu", torch.float64).view(shape)


def _reward_metrics(rewards: Tensor) -> dict[str, Tensor]:
    return {
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(correction=0),
        "group_std": rewards.std(dim=2, correction=0).mean(),
    }


def _cost_metrics(drawn: Rollout) -> dict[str, Tensor]:
    return {name: torch.tensor(getattr(drawn, name)) for name in ("num_calls", "num_row_evaluations")}
