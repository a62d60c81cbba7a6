"""The policy that a run trains, or that it has tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..choices import EMBEDDED_MODEL
from ..graphs.capture import replayable
from ..grpo.geometry import Geometry
from ..grpo.measure import measure
from ..grpo.memory import GIB, Load
from ..policies import DiffusersPolicy, Policy
from ..policies.compiled import compile_blocks
from ..policies.weightless import WeightlessPolicy, is_known, model_configs
from ..prompts.entries import Entry
from ..prompts.sets import get_prompts
from ..settings.run import PolicyConfig, TrainConfig
from ..shapes import pipeline_path
from ..source_images import sources_of
from .directory import RunDirectory
from .load import load_policy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LORA_INIT: dict[str, str | bool] = {"gaussian": "gaussian", "kaiming": True}
"""Setting `lora_init` -> peft's argument."""


def prepare_policy(
    config: PolicyConfig, device: torch.device | None = None, allow_code: bool = False
) -> DiffusersPolicy:
    """Loads the model of the settings, ready for training: with its adapter and in its precision.

    Args:
        config: the settings.
        device: the device of this process, if several share the run; None: the device in the settings.
        allow_code: as in `load_policy`.

    Returns:
        The policy.

    Raises:
        ValueError: if the model cannot be loaded or a setting does not fit it.
    """
    policy = _loaded(config, config.model, device, config.lora_rank is not None, allow_code)
    if config.lora_rank is not None:
        alpha = 2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
        targets: dict[str, Any] = {} if config.lora_targets is None else {"targets": config.lora_targets}
        policy.add_lora(config.lora_rank, alpha, init=LORA_INIT[config.lora_init], **targets)
    if config.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    if config.compile_blocks:
        compile_blocks(policy.network)
    return policy


def weightless_policy(config: PolicyConfig) -> WeightlessPolicy | None:
    """The model of the settings from its configuration files alone, ready to be measured.

    Args:
        config: the settings.

    Returns:
        None if there are no such files, or the calls of its network are known from loading it alone.

    Raises:
        ValueError: if a file is damaged or a setting does not fit.
    """
    files = model_configs(pipeline_path() if config.model == EMBEDDED_MODEL else config.model)
    if files is None or not is_known(files):
        return None
    dtype = DTYPES[config.precision]
    frozen = dtype if config.lora_rank is not None else torch.float32
    policy = WeightlessPolicy(files, frozen, config.resolution, config.max_text_length)
    if config.lora_rank is None and dtype != torch.float32:
        compute_in(policy.network, dtype)
    if config.lora_rank is not None:
        alpha = 2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
        policy.add_lora(config.lora_rank, alpha, config.lora_targets)
    if config.gradient_checkpointing:
        network: Any = policy.network
        network.enable_gradient_checkpointing()
    return policy


def fitted(config: TrainConfig, policy: Policy, num_processes: int) -> tuple[TrainConfig, str, int]:
    """Fits the size of network calls to the memory limit.

    Args:
        config: the settings.
        policy: from `prepare_policy`.
        num_processes: how many processes share the run.

    Returns:
        The settings, with `micro_batch`, `max_batch` and `decode_batch` reduced if necessary; a report on memory; and
        the bytes in total.

    Raises:
        ValueError: if calls with one row exceed the limit.
    """
    memory = measure(policy, config.grpo, config.optimizer, config.policy, most_sources(config, policy))
    load = load_of(config, num_processes)
    if config.policy.memory_limit is not None:
        load = load.with_rows(*memory.fitting(config.policy.memory_limit * GIB, load))
        rows = load.training_rows, load.rollout_rows, load.decoded_rows
        config = config.with_settings(**dict(zip(("micro_batch", "max_batch", "decode_batch"), rows, strict=True)))
    return config, memory.page(load), memory.total(load)


def most_sources(config: TrainConfig, policy: object) -> Entry:
    """The training prompt with the most source images.

    Args:
        config: the settings.
        policy: the model.

    Returns:
        Its entry; an empty one, if the model takes no source images.
    """
    if getattr(policy, "num_images", (0, 0))[1] == 0:
        return {}
    prompts = get_prompts(config.task.prompts, config.task.eval_prompts, config.task.prompt_column)
    return max(prompts.everything()[0], key=lambda entry: len(sources_of(entry)))


def load_of(config: TrainConfig, num_processes: int) -> Load:
    """What the busiest process has to hold.

    Args:
        config: the settings.
        num_processes: how many processes share the run.
    """
    return Load.of(Geometry(config.grpo, config.task.prompts_per_iteration, num_processes), config.run.num_iterations)


def tuned_policy(
    config: PolicyConfig, run: RunDirectory, device: torch.device | None = None, allow_code: bool = False
) -> DiffusersPolicy:
    """Loads the tuned model of a run.

    Args:
        config: the settings.
        run: the run directory.
        device: as in `prepare_policy`.
        allow_code: as in `load_policy`.

    Returns:
        The policy.

    Raises:
        ValueError: if the run has not saved its model yet, or the model is damaged or cannot be loaded.
    """
    tuned = run.tuned()
    if tuned == run.lora:
        return plain_policy(config, run.lora, device, allow_code)
    return _loaded(config, str(tuned), device, False, allow_code)


def plain_policy(
    config: PolicyConfig, lora: Path | None = None, device: torch.device | None = None, allow_code: bool = False
) -> DiffusersPolicy:
    """Loads the model of the settings for sampling, without training.

    Args:
        config: the settings.
        lora: a file or directory with an adapter; None: the model as it is.
        device: as in `prepare_policy`.
        allow_code: as in `load_policy`.

    Returns:
        The policy.

    Raises:
        ValueError: if the model or the adapter cannot be loaded.
    """
    policy = _loaded(config, config.model, device, True, allow_code)
    if lora is not None:
        policy.load_lora(lora)
    return policy


def _loaded(
    config: PolicyConfig, model: str, device: torch.device | None, frozen: bool, allow_code: bool
) -> DiffusersPolicy:
    """The model without an adapter. Trained weights stay in float32: in 16 bits, small updates would be lost."""
    dtype = DTYPES[config.precision]
    policy = load_policy(
        model,
        device_of(config.device, device),
        dtype if frozen else torch.float32,
        config.resolution,
        config.max_text_length,
        allow_code,
        config.policy,
        num_frames=config.num_frames,
        frame_rate=config.frame_rate,
    )
    if config.offload_text_encoders:
        policy.offload_text_encoders()
    if config.vae_precision == "bf16":
        policy.decode_in_bf16()
    if not frozen and dtype != torch.float32:
        compute_in(policy.network, dtype)
    return policy


def device_of(name: str, of_process: torch.device | None) -> torch.device | str:
    """Returns the device of the model: that of the process, if several share the run, or else that of the settings.

    Args:
        name: the device in the settings.
        of_process: the device that this process has to use; None: any.
    """
    if of_process is not None or name == "auto":
        return of_process or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return name


def compute_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Makes every call of a network compute under autocast; its weights keep their precision.

    Each call has its own context. Autocast caches its casts of the weights until the context ends, so a context that
    spans an update would use old weights.

    Args:
        network: gets forward hooks.
        dtype: precision of the calls.
    """
    contexts: list[torch.autocast] = []

    def enter(module: nn.Module, inputs: object) -> None:
        device = next(module.parameters()).device
        contexts.append(torch.autocast(device.type, dtype))
        contexts[-1].__enter__()

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        contexts.pop().__exit__(None, None, None)

    # Kernels that a graph captured between the two hooks already have the precision.
    network.register_forward_pre_hook(replayable(enter))
    network.register_forward_hook(replayable(leave), always_call=True)
