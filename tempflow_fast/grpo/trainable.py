"""What of a policy would make its training silently wrong."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import fail, require
from ..policies.base import Policy


def check_trainable(function: str, policy: Policy) -> None:
    """Refuses a network whose gradients vanish, or whose velocity of one state is another in every call.

    In float16 the gradients vanish, also those of an adapter in float32: the loss is a mean over pairs and over the D
    elements of a latent, so that an element of the velocity has a gradient below 1 / D. At 512 pixels most of these are
    less than the smallest float16, and become 0.

    With dropout, the ratio of an unchanged policy is not 1, and with batch normalisation by the rows of a call it
    depends on those. PyTorch makes modules in training mode.

    Args:
        function: the caller, for the error.
        policy: to train.

    Raises:
        ValueError: naming the policy or the module.
    """
    expected = "of float32 or bfloat16, since gradients vanish in float16"
    require(policy.dtype != torch.float16, function, "policy", expected, "one of float16")
    varying = next((entry for entry in policy.network.named_modules() if _varies(entry[1])), None)
    if varying is not None:
        name, module = varying
        expected = "in evaluation mode (policy.network.eval()), where a state has one velocity"
        fail(function, "policy.network", expected, f"one in training mode with the {type(module).__name__} {name!r}")


def _varies(module: nn.Module) -> bool:
    """Whether a module's output depends on chance or on other rows."""
    drops = isinstance(module, _DropoutNd) and module.p > 0
    drops = drops or (isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) and module.dropout > 0)
    return module.training and (drops or isinstance(module, _BatchNorm))
