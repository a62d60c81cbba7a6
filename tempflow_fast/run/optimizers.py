"""The optimizer of a run and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from ..settings.run import OptimizerConfig


def make_optimizer(parameters: Iterable[Parameter], config: OptimizerConfig) -> Optimizer:
    """AdamW, or AdamW with its state in 8 bits.

    Raises:
        ValueError: if 8 bits are asked for and bitsandbytes is not installed.
    """
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.adam_eps,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(f"make_optimizer: adamw_8bit needs the library: pip install bitsandbytes ({error})") from error
    return AdamW8bit(parameters, **settings)


def learning_rate(config: OptimizerConfig, iteration: int, fraction: float) -> float:
    """The rate of an iteration.

    Args:
        config: the settings.
        iteration: its index, 0 for the first.
        fraction: share of the run that is over when it begins, in [0, 1].
    """
    rising = min(1.0, (iteration + 1) / (config.warmup_iterations + 1))
    falling = min(1.0, (1 - fraction) / config.learning_rate_decay) if config.learning_rate_decay else 1.0
    return config.learning_rate * rising * falling


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate
