"""One iteration of TempFlow-GRPO (arXiv 2508.04324): from prompts to a better policy."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import ops
from .advantages import group_advantages
from .batching import deal, equal_pieces, padded
from .config import GRPOConfig
from .cuda_graphs import graphs_of
from .policies.base import Policy
from .processes import Processes
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
    processes: Processes | None = None,
) -> dict[str, Tensor | float]:
    """Samples, scores and updates once.

    Trajectory n starts from prompt n // S and belongs to update n % num_updates. Where processes share the iteration,
    each takes whole trajectories (see `deal`), whatever their number; noise, rewards, advantages and the update are
    those of one process, up to the rounding of network calls of another shape and of sums in another order.

    Args:
        policy: changed in place through `optimizer`.
        prompts: P prompts, the same in all processes; each gets `config.num_seeds` trajectories.
        reward_fn: called once with all images of the process's trajectories, N B K of them in that order if it is
            alone, on the device of the policy. A process without trajectories does not call it.
        optimizer: holds `policy.parameters()`.
        config: the settings.
        seed: key of all noise; give every iteration its own.
        metadata: P dictionaries passed on to the reward; None: empty ones.
        processes: who shares the iteration, with the network and the optimizer that its `prepare` returned; None: this
            process alone.

    Returns:
        Scalars, equal in all processes, that stay tensors on their device, so that nothing waits for them:
        reward_mean, reward_std (population, over all rewards), group_std (mean over seed groups), signal_fraction
        (share of trained pairs), loss and grad_norm (means over updates), kl, clip_fraction and log_ratio_rms (means
        over trained pairs), num_calls (of one process) and num_row_evaluations (of all) in the rollout.
        `seconds_<stage>`, of the slowest process, for encode, rollout, decode, reward and train; an accelerator's
        queued work counts for the stage that waits for it.

    Raises:
        ValueError: naming the argument; before the rollout, unless the rewards themselves are at fault.
        ProcessLostError: if another process ended.
    """
    processes = processes or Processes()
    table, names, extras = _checked_inputs(policy, prompts, optimizer, config, metadata)
    with processes.guarded():
        _check_agreement(processes, names, config, seed)
        shares, clock = deal(len(names), config.num_updates, processes.count), StageClock()
        own, rows = shares[processes.index], padded(shares, processes.index)
        with clock.stage("encode"):
            condition = policy.encode([names[n] for n in rows], guided=config.guidance_scale != 1.0)
            noise = ops.initial_noise(policy.latent_shape, seed, torch.tensor(rows), policy.device)
        with clock.stage("rollout"):
            calls = {"max_batch": config.max_batch, "guidance_scale": config.guidance_scale}
            graphs = graphs_of(policy) if config.cuda_graphs else None
            drawn = rollout(policy, condition, table, noise, config.num_branches, seed, rows, **calls, graphs=graphs)
        with clock.stage("decode"):
            images = _decode(policy, drawn.latents[: len(own)].flatten(0, 2), config.max_batch)
        with clock.stage("reward"):
            shape = (len(names), *drawn.latents.shape[1:3])
            rewards = _score(reward_fn, images, own, names, extras, shape, processes)
        with clock.stage("train"):
            prompt_ids = torch.arange(len(names)) // config.num_seeds
            advantages = group_advantages(rewards, config.group, prompt_ids, config.adv_eps, config.adv_clip)
            metrics = update(policy, drawn, advantages, optimizer, config, processes)
        return {**_reward_metrics(rewards), **_cost_metrics(drawn, processes), **metrics, **clock.slowest(processes)}


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

    def slowest(self, processes: Processes) -> dict[str, float]:
        """The seconds of each stage in the process that took longest."""
        if processes.count == 1:
            return self.seconds
        longest = processes.max(torch.tensor(list(self.seconds.values()), dtype=torch.float64))
        return dict(zip(self.seconds, longest.tolist(), strict=True))


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


def _check_agreement(processes: Processes, names: list[str], config: GRPOConfig, seed: int) -> None:
    """Stops processes that were given different work, as a data loader of one process each would do."""
    if processes.count == 1:
        return
    digest = hashlib.sha256(repr((names, config, seed)).encode()).digest()
    number = torch.tensor(int.from_bytes(digest[:6], "big"))
    if processes.max(number) != -processes.max(-number):
        raise ValueError(
            "grpo_step: prompts, config and seed must be the same in all processes, got different ones; trajectories "
            "are dealt to the processes inside"
        )


def _decode(policy: Policy, latents: Tensor, max_batch: int | None) -> Tensor | None:
    """Images [R, 3, H, W] of latents [R, *shape]; None of no latents."""
    pieces = [policy.decode(latents[rows]) for rows in equal_pieces(len(latents), max_batch)]
    return torch.cat(pieces) if pieces else None


def _score(
    reward_fn: Reward,
    images: Tensor | None,
    own: list[int],
    names: list[str],
    extras: list[dict[str, Any]],
    shape: tuple[int, ...],
    processes: Processes,
) -> Tensor:
    """Rewards [N, B, K] of all processes, float64 on the host; `images` are those of the trajectories `own`."""
    rewards = torch.zeros(shape, dtype=torch.float64)
    if images is not None:
        repeats = len(images) // len(own)
        prompts = [names[n] for n in own for _ in range(repeats)]
        metadata = [extras[n] for n in own for _ in range(repeats)]
        scores = torch.as_tensor(reward_fn(images, prompts, metadata)).detach()
        if scores.shape != images.shape[:1]:
            want = f"[{len(images)}], one per image"
            raise ValueError(f"grpo_step: reward_fn must return {want}, got {list(scores.shape)}")
        rewards[own] = scores.to("cpu", torch.float64).view(len(own), *shape[1:])
    return processes.sum(rewards)


def _reward_metrics(rewards: Tensor) -> dict[str, Tensor]:
    return {
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(correction=0),
        "group_std": rewards.std(dim=2, correction=0).mean(),
    }


def _cost_metrics(drawn: Rollout, processes: Processes) -> dict[str, Tensor]:
    # Padding makes the rollouts of all processes alike.
    rows = drawn.num_row_evaluations * processes.count
    return {"num_calls": torch.tensor(drawn.num_calls), "num_row_evaluations": torch.tensor(rows)}
