"""An iteration in the structure of the paper's public scripts, for the training loop of this package."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tempflow_fast import GRPOConfig, group_advantages, ops
from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.processes import Processes

from .. import paper

MAX_ROWS = 64
"""Most rows of a training call, as in the recipe for shapes."""


def paper_step(
    policy: DiffusersPolicy,
    prompts: Sequence[str],
    reward_fn: Any,
    optimizer: torch.optim.Optimizer,
    config: GRPOConfig,
    seed: int = 0,
    metadata: Sequence[dict[str, Any]] | None = None,
    processes: Processes | None = None,
) -> dict[str, Tensor | float]:
    """One iteration, in place of `grpo_step` and with its arguments: seed groups, no guidance, one process.

    Branches have other noise than those of `grpo_step`; prompts and initial noise are the same.

    Returns:
        The metrics that a run shows and the experiment keeps.
    """
    began, table, k = time.perf_counter(), config.table(policy), config.num_branches
    texts = [prompt for prompt in prompts for _ in range(config.num_seeds)]
    entries = [entry for entry in metadata or [{}] * len(prompts) for _ in range(config.num_seeds)]
    condition = policy.encode(texts)
    noise = ops.initial_noise(policy.latent_shape, seed, torch.arange(len(texts)), policy.device)
    torch.manual_seed(seed)
    drawn = paper.roll_out(policy, condition, table, noise, config)
    named, facts = [text for text in texts for _ in range(k)], [entry for entry in entries for _ in range(k)]
    scores = [reward_fn(policy.decode(each.latents), named, facts) for each in drawn]
    rewards = torch.stack([each.double().unflatten(0, (len(texts), k)) for each in scores], dim=1)  # [N, B, K]
    scored = time.perf_counter()
    advantages = group_advantages(rewards, "seed", adv_eps=config.adv_eps, adv_clip=config.adv_clip)
    owner, losses = torch.arange(len(texts)) % config.num_updates, []
    for number in range(config.num_updates):
        rows = torch.nonzero(owner == number).flatten()
        part = [each.of(rows) for each in drawn]
        loss, _ = paper.update(policy, condition[rows], table, part, advantages[rows], optimizer, config, MAX_ROWS)
        losses.append(loss)
    return {
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(correction=0),
        "group_std": rewards.std(-1, correction=0).mean(),
        "loss": sum(losses) / len(losses),
        "num_row_evaluations": float(Geometry(config, len(prompts)).costs()[0].rollout),
        **dict.fromkeys(("kl", "skipped_updates"), 0.0),
        **dict.fromkeys(("log_ratio_rms", "clip_fraction"), float("nan")),  # the scripts' loss does not tell them
        **dict.fromkeys(("seconds_encode", "seconds_decode", "seconds_reward", "seconds_compile"), 0.0),
        "seconds_rollout": scored - began,
        "seconds_train": time.perf_counter() - scored,
    }
