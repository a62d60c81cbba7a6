"""One iteration of TempFlow-GRPO (arXiv 2508.04324): from prompts to a better policy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import fail, instance, integers, require
from ..ops.schedule import StepTable
from ..policies import compiled
from ..policies.base import Policy, check_policy, images_of
from ..processes import Processes
from ..rewards import Scores, get_reward
from ..rewards.registry import Spec
from ..settings.iteration import GRPOConfig
from .acting import act
from .advantages import group_spreads
from .branches import Branches
from .meter import check_halves
from .rollout import Rollout
from .rounding import warn_of_rounding
from .shares import Shares
from .stage_clock import StageClock
from .update import check_training, update


def grpo_step(
    policy: Policy,
    prompts: Sequence[str],
    reward_fn: Spec,
    optimizer: Optimizer,
    config: GRPOConfig,
    seed: int = 0,
    metadata: Sequence[dict[str, Any]] | None = None,
    processes: Processes | None = None,
) -> dict[str, Tensor | float]:
    """Runs one iteration: draws images, scores them and updates the policy.

    Trajectory n starts from prompt n // S. With several processes, each takes whole trajectories, however many or few
    (see `Shares`). Noise is identical to that of a single process; rewards, advantages and the update agree up to
    rounding, since network calls have other shapes and sums another order.

    Args:
        policy: changed in place through `optimizer`.
        prompts: P prompts, the same in all processes; each gets `config.num_seeds` trajectories.
        reward_fn: anything that `get_reward` takes. It is called in a thread with pieces of at most `config.max_batch`
            and `config.decode_batch` images (all at once if None) on the policy's device, while later pieces are still
            computed. Images are in the order in which they are finished: by branch step, then trajectory, then branch,
            so that the branches of a seed group follow one another. A process without trajectories does not call it.
        optimizer: holds `policy.parameters()`.
        config: the settings.
        seed: key of all noise; give every iteration its own.
        metadata: P dictionaries passed on to the reward; None: empty ones. For a policy that edits images, `image` is
            the path of a prompt's source image, or a list of paths.
        processes: who shares the iteration; policy and optimizer are then those that its `prepare` returned. None:
            this process alone.

    Returns:
        Scalars, equal in all processes. They stay tensors on their device, so that nothing waits for them:
        reward_mean, reward_std (population, over all rewards), group_std (mean over the groups of `config.group`; those
        of one branch step as group_std_step_<i>, unless rewards belong to all steps), where several rewards are summed
        the mean of each as reward_<name>, `image_statistics` of all images, signal_fraction (share of trained pairs),
        loss and grad_norm (means over updates), kl, clip_fraction and log_ratio_rms (means over trained pairs),
        skipped_updates (those that were not finite, and not taken; the means are without them), num_calls (of one
        process) and num_row_evaluations (of all) in the rollout. An iteration with a gate also has what `gate_metrics`
        finds, and one with `branch_budget` what `StepMeter.metrics` finds.
        `seconds_<stage>`, of the slowest process, for encode, rollout, decode, reward and train, not counting stages
        nested inside; queued work of an accelerator counts for the stage that waits for it. `seconds_reward` is the
        part of `seconds_reward_busy` that had to be waited for; `seconds_compile` is the part of the rollout that
        torch.compile took.

    Raises:
        ValueError: naming the argument, before the rollout; also under autocast, without gradients, or with a default
            device of torch.
        RewardError: if a reward failed, naming it and the sample; the policy is as it was.
        NotFiniteError: if latents or images are infinite or NaN, naming the cause; the policy is as it was.
        ProcessLostError: if another process ended.
    """
    processes, reward = Processes() if processes is None else processes, get_reward(reward_fn)
    instance("grpo_step", "processes", processes, Processes, "the Processes that `launched` returns, or None")
    integers("grpo_step", "seed", [seed])
    table, texts, extras = _checked_inputs(policy, prompts, optimizer, config, metadata)
    with processes.guarded():
        _check_agreement(processes, texts, config, seed)
        shares = Shares(len(texts), config.num_updates, processes.count, processes.index)
        clock, compile_seconds_before = StageClock(), compiled.clock.seconds
        acted = act(policy, reward, texts, extras, table, config, seed, shares, processes, clock)
        clock.seconds["seconds_compile"] = compiled.clock.seconds - compile_seconds_before
        with clock.stage("train"), compiled.uncompiled():
            metrics = update(
                policy, acted.rollout, acted.advantages, optimizer, config, processes, shares, acted.branches
            )
        scored, drawn = acted.scored, acted.rollout
        measured = {
            **_reward_metrics(scored.rewards, config, acted.images),
            **scored.statistics,
            **_cost_metrics(drawn, processes),
        }
        return {**measured, **acted.gate, **metrics, **clock.slowest(processes)}


def _check_surroundings(policy: Policy) -> None:
    """Refuses what the caller's code around an iteration would change in it."""
    gradients = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    require(gradients, "grpo_step", "gradient mode", "on around it", "off, by torch.no_grad or inference_mode")
    autocast = torch.is_autocast_enabled(policy.device.type)
    require(not autocast, "grpo_step", "autocast", "off around it: the policy decides its own precision", "on")
    dtype = torch.get_default_dtype()
    require(dtype == torch.float32, "grpo_step", "torch's default dtype", "float32: the policy decides its own", dtype)
    device = torch.get_default_device()
    require(device.type == "cpu", "grpo_step", "torch's default device", "the CPU, where rewards are compared", device)


def _checked_inputs(
    policy: Policy,
    prompts: Sequence[str],
    optimizer: Optimizer,
    config: GRPOConfig,
    metadata: Sequence[dict[str, Any]] | None,
) -> tuple[StepTable, list[str], list[dict[str, Any]]]:
    """The step table, and the prompt and metadata of each of the N = P S trajectories."""
    check_policy("grpo_step", policy, "encode", "velocity", "decode", "sigmas", "parameters", "latent_shape")
    _check_surroundings(policy)
    check_training("grpo_step", policy, optimizer, config)
    warn_of_rounding(policy)
    if not isinstance(prompts, Sequence) or isinstance(prompts, str) or not prompts:
        fail("grpo_step", "prompts", "a list of at least one text", repr(prompts))
    for prompt in prompts:
        instance("grpo_step", "prompts", prompt, str, "a list of texts")
    metadata = [{} for _ in prompts] if metadata is None else metadata
    expected = f"a list of {len(prompts)} entries like prompts"
    instance("grpo_step", "metadata", metadata, Sequence, expected)
    require(len(metadata) == len(prompts), "grpo_step", "metadata", expected, len(metadata))
    for entry in metadata:
        instance("grpo_step", "metadata", entry, Mapping, "a list of mappings, one per prompt")
    images_of("grpo_step", policy, metadata)
    limit = len(prompts) * config.num_seeds
    require(
        config.num_updates <= limit, "grpo_step", "num_updates", f"at most the {limit} trajectories", config.num_updates
    )
    check_halves("grpo_step", config, len(prompts))
    texts = [prompt for prompt in prompts for _ in range(config.num_seeds)]
    extras = [entry for entry in metadata for _ in range(config.num_seeds)]
    table = config.table(policy)
    require(bool(table.branch_steps), "grpo_step", "table", "one with a branch step", "none")
    return table, texts, extras


def _check_agreement(processes: Processes, texts: list[str], config: GRPOConfig, seed: int) -> None:
    """Stops processes that were given different work, as one data loader per process would give them."""
    if processes.count == 1:
        return
    digest = hashlib.sha256(repr((texts, config, seed)).encode()).digest()
    number = torch.tensor(int.from_bytes(digest[:6], "big"))
    if processes.max(number) != -processes.max(-number):
        expected = "the same in all processes, since trajectories are dealt to the processes inside"
        fail("grpo_step", "prompts, config and seed", expected, "different ones")


def _reward_metrics(rewards: Scores, config: GRPOConfig, images: Branches) -> dict[str, Tensor]:
    total = rewards.total
    parts = {f"reward_{name}": part.mean() for name, part in rewards.parts.items()}
    group_std = group_spreads(total, config, images)
    steps = images.steps.unique().tolist() if config.trunk == "ode" else []
    return {
        "reward_mean": total.mean(),
        "reward_std": total.std(correction=0),
        "group_std": group_std.mean(),
        **{f"group_std_step_{step}": group_std[images.steps == step].mean() for step in steps},
        **(parts if len(parts) > 1 else {}),
    }


def _cost_metrics(drawn: Rollout, processes: Processes) -> dict[str, Tensor]:
    rows = processes.sum(torch.tensor(drawn.num_row_evaluations))
    return {"num_calls": torch.tensor(drawn.num_calls), "num_row_evaluations": rows}
