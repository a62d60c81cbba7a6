"""What training loses in 16 bits: small updates of weights, and in float16 the gradients."""

from __future__ import annotations

import functools
import warnings

import torch

from ..errors import require
from ..policies.base import Policy

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def check_gradients(function: str, policy: Policy) -> None:
    """Refuses to train through a network in float16, an adapter in float32 inside it as well.

    The loss is a mean over pairs and over the D elements of a latent, so that an element of the velocity has a gradient
    below 1 / D. At 512 pixels most of these are less than the smallest float16, and become 0.

    Args:
        function: the caller, for the error.
        policy: to train.

    Raises:
        ValueError: naming the policy.
    """
    expected = "of float32 or bfloat16, since gradients vanish in float16"
    require(policy.dtype != torch.float16, function, "policy", expected, "one of float16")


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
