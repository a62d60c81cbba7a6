"""An optimizer step that a gradient which is not finite cannot spoil."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import SGD, Optimizer


def step_if_finite(optimizer: Optimizer, grad_norm: Tensor) -> None:
    """Takes the step unless the norm is infinite or NaN; then weights and optimizer state stay as they are.

    Fused optimizers (`torch.optim.AdamW(..., fused=True)`) decide on the device. For the others, and for the first step
    of SGD with momentum, the norm is read, for which the host waits if it is on an accelerator.

    Args:
        optimizer: holds the gradients; it may be in accelerate's wrapper.
        grad_norm: scalar, the norm of all gradients, equal in all processes.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    if not getattr(inner, "_step_supports_amp_scaling", False) or _makes_momenta(inner):
        if grad_norm.isfinite():
            optimizer.step()
        return
    # The two attributes by which torch's GradScaler tells an optimizer to do nothing.
    inner.grad_scale, inner.found_inf = None, (~grad_norm.isfinite()).float()
    try:
        optimizer.step()
    finally:
        del inner.grad_scale, inner.found_inf


def _makes_momenta(optimizer: Optimizer) -> bool:
    """Whether the step is a first one of SGD with momentum.

    Where torch's fused SGD is told to do nothing, it leaves the momenta that it makes unwritten, and its next step
    reads them.
    """
    return isinstance(optimizer, SGD) and any(
        group["momentum"] and weight.grad is not None and optimizer.state.get(weight, {}).get("momentum_buffer") is None
        for group in optimizer.param_groups
        for weight in group["params"]
    )
