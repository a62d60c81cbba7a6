"""The optimizer of a run and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from ..errors import fail
from ..settings.run import OptimizerConfig


def make_optimizer(parameters: Iterable[Parameter], config: OptimizerConfig) -> Optimizer:
    """Makes AdamW, or AdamW with its state in 8 bits.

    On an accelerator AdamW is fused, so that it decides there whether a gradient is finite (see `step_if_finite`).

    Args:
        parameters: the weights to train.
        config: the settings.

    Returns:
        The optimizer.

    Raises:
        ValueError: for 8 bits without the library bitsandbytes.
    """
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.adam_eps,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        parameters = list(parameters)
        on_host = all(parameter.device.type == "cpu" for parameter in parameters)
        return torch.optim.AdamW(parameters, fused=None if on_host else True, **settings)
    check_optimizer(config)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **settings)


def check_optimizer(config: OptimizerConfig) -> None:
    """Checks that the optimizer can be made.

    Args:
        config: the settings.

    Raises:
        ValueError: for 8 bits without the library bitsandbytes.
    """
    if config.optimizer == "adamw":
        return
    try:
        import bitsandbytes.optim  # noqa: F401
    except ImportError as error:
        got = f"{config.optimizer!r}: pip install bitsandbytes ({error})"
        fail("make_optimizer", "optimizer", "'adamw' where bitsandbytes is not installed", got)


def learning_rate(config: OptimizerConfig, iteration: int, fraction: float) -> float:
    """Returns the learning rate of an iteration, with warm-up and decay.

    Args:
        config: the settings.
        iteration: its index, from 0.
        fraction: share of the run that is done before it, in [0, 1].
    """
    rising = min(1.0, (iteration + 1) / (config.warmup_iterations + 1))
    falling = min(1.0, (1 - fraction) / config.learning_rate_decay) if config.learning_rate_decay else 1.0
    return config.learning_rate * rising * falling


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameters.

    Args:
        optimizer: changed in place.
        rate: the learning rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
