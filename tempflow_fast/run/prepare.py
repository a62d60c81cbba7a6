"""The policy that a run trains, or that it left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..graphs.capture import replayable
from ..grpo.geometry import Geometry
from ..grpo.memory import GIB, measure
from ..policies import DiffusersPolicy
from ..policies.compiled import compile_blocks
from ..settings.run import PolicyConfig, TrainConfig
from .directory import RunDirectory
from .load import load_policy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LORA_INIT: dict[str, str | bool] = {"gaussian": "gaussian", "kaiming": True}
"""Ours -> peft's."""


def prepare_policy(config: PolicyConfig, device: torch.device | None = None) -> DiffusersPolicy:
    """The model of the settings, ready to be trained: with its adapter, in its precision.

    Args:
        config: the settings.
        device: where it has to be, for a process that shares a run with others; None: where the settings say.

    Raises:
        ValueError: if the model cannot be loaded or a setting does not fit it.
    """
    policy = _loaded(config, config.model, device, frozen=config.lora_rank is not None)
    if config.lora_rank is not None:
        alpha = 2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
        targets: dict[str, Any] = {} if config.lora_targets is None else {"targets": config.lora_targets}
        policy.add_lora(config.lora_rank, alpha, init=LORA_INIT[config.lora_init], **targets)
    if config.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    if config.compile_blocks:
        compile_blocks(policy.network)
    return policy


def fitted(config: TrainConfig, policy: DiffusersPolicy, num_processes: int) -> tuple[TrainConfig, str]:
    """The settings with calls that stay below their memory limit, and what to say about memory.

    Args:
        config: the settings; `micro_batch` and `max_batch` are only ever made smaller.
        policy: as `prepare_policy` returned it.
        num_processes: how many share the run.

    Raises:
        ValueError: if not even calls of one row stay below the limit.
    """
    memory, grpo = measure(policy, config.grpo), config.grpo
    geometry = Geometry(grpo, config.task.prompts_per_iteration, num_processes)
    num_trajectories = max(work.num_rows for work in geometry.work)
    training, rollout = max(max(work.pairs) for work in geometry.work), max(geometry.rows_per_step) * num_trajectories
    most = (grpo.micro_batch or training, grpo.max_batch or rollout)
    if config.policy.memory_limit is not None:
        fitting = memory.fitting(config.policy.memory_limit * GIB, num_trajectories)
        most = (min(most[0], fitting[0]), min(most[1], fitting[1]))
        config = config.with_settings(micro_batch=most[0], max_batch=most[1])
    total = memory.total(num_trajectories, *most) / GIB
    return config, f"{memory}\nabout {total:.3g} in all, with calls of at most {most[0]} and {most[1]} rows"


def tuned_policy(config: PolicyConfig, run: RunDirectory, device: torch.device | None = None) -> DiffusersPolicy:
    """The model that a run left behind; `device` as in `prepare_policy`.

    Raises:
        ValueError: if it has not left one yet.
    """
    if run.lora.is_dir():
        return plain_policy(config, run.lora, device)
    if not run.model.is_dir():
        raise ValueError(f"run directory must hold a tuned model, got {str(run.path)!r}, whose training has not ended")
    return _loaded(config, str(run.model), device, frozen=False)


def plain_policy(config: PolicyConfig, lora: Path | None = None, device: torch.device | None = None) -> DiffusersPolicy:
    """The model as it is, or with the adapter of a file or directory, to sample with; `device` as in `prepare_policy`.

    Raises:
        ValueError: if the model or the adapter cannot be loaded.
    """
    policy = _loaded(config, config.model, device, frozen=True)
    if lora is not None:
        policy.load_lora(lora)
    return policy


def _loaded(config: PolicyConfig, model: str, device: torch.device | None, frozen: bool) -> DiffusersPolicy:
    """The model alone. Weights that are trained stay in float32: in 16 bits, small updates would be lost."""
    dtype = DTYPES[config.precision]
    policy = load_policy(
        model,
        _device(config.device, device),
        dtype if frozen else torch.float32,
        config.resolution,
        config.max_text_length,
    )
    if config.offload_text_encoders:
        policy.offload_text_encoders()
    if not frozen and dtype != torch.float32:
        compute_in(policy.network, dtype)
    return policy


def _device(name: str, of_process: torch.device | None) -> torch.device | str:
    """That of the process where it is one of many, else the one that the settings name."""
    if of_process is not None or name == "auto":
        return of_process or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return name


def compute_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Makes every call of `network` compute in `dtype` by autocast; its weights stay as they are.

    Each call is a context of its own: autocast keeps its casts of the weights for the length of one, and a longer one
    would go on with those from before an update.
    """
    contexts: list[torch.autocast] = []

    def enter(module: nn.Module, inputs: object) -> None:
        device = next(module.parameters()).device
        contexts.append(torch.autocast(device.type, dtype))
        contexts[-1].__enter__()

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        contexts.pop().__exit__(None, None, None)

    # Kernels that were recorded between the two have the precision already.
    network.register_forward_pre_hook(replayable(enter))
    network.register_forward_hook(replayable(leave), always_call=True)
