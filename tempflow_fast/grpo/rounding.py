"""Trained weights of 16 bits, in which small updates are lost."""

from __future__ import annotations

import functools
import warnings

import torch

from ..policies.base import Policy

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def warn_of_rounding(policy: Policy) -> None:
    """Warns, once for each network, of trained parameters that are too coarse for the updates of an optimizer.

    Args:
        policy: the model.
    """
    coarse = {id(parameter): parameter.dtype for parameter in policy.parameters() if parameter.dtype in SIXTEEN_BITS}
    if coarse:
        names = (name for name, parameter in policy.network.named_parameters() if id(parameter) in coarse)
        _warn(next(names, "a parameter"), len(coarse) - 1, next(iter(coarse.values())))


@functools.cache
def _warn(name: str, num_others: int, dtype: torch.dtype) -> None:
    kind, share = str(dtype).removeprefix("torch."), round(2 / torch.finfo(dtype).eps)
    warnings.warn(
        f"{name} and {num_others} other parameters are trained in {kind}, where a change of less than 1/{share} of a "
        "weight rounds away: train an adapter (add_lora, always in float32) or load the model with dtype=torch.float32",
        stacklevel=5,
    )
