"""The policy that a run trains, or that it left behind."""

from __future__ import annotations

import torch
from torch import nn

from .load import load_policy
from .policies import DiffusersPolicy
from .run_directory import RunDirectory
from .train_config import PolicyConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LORA_INIT: dict[str, str | bool] = {"gaussian": "gaussian", "kaiming": True}
"""Ours -> peft's."""


def prepare_policy(config: PolicyConfig, device: torch.device | None = None) -> DiffusersPolicy:
    """The model of the settings, ready to be trained: with its adapter, in its precision.

    Args:
        config: the settings.
        device: where to put it if the settings leave it open; None: the first GPU, or the CPU.

    Raises:
        ValueError: if the model cannot be loaded or a setting does not fit it.
    """
    policy = _loaded(config, config.model, device, frozen=config.lora_rank is not None)
    if config.lora_rank is not None:
        alpha = 2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
        targets = {} if config.lora_targets is None else {"targets": config.lora_targets}
        policy.add_lora(config.lora_rank, alpha, init=LORA_INIT[config.lora_init], **targets)
    if config.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    return policy


def tuned_policy(config: PolicyConfig, run: RunDirectory) -> DiffusersPolicy:
    """The model that a run left behind.

    Raises:
        ValueError: if it has not left one yet.
    """
    if run.lora.is_dir():
        policy = _loaded(config, config.model, None, frozen=True)
        policy.load_lora(run.lora)
        return policy
    if not run.model.is_dir():
        raise ValueError(f"run directory must hold a tuned model, got {str(run.path)!r}, whose training has not ended")
    return _loaded(config, str(run.model), None, frozen=False)


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


def _device(name: str, of_process: torch.device | None) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return of_process or torch.device("cuda" if torch.cuda.is_available() else "cpu")


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

    network.register_forward_pre_hook(enter)
    network.register_forward_hook(leave, always_call=True)
