"""Muon (https://kellerjordan.github.io/posts/muon): each step takes the momentum as an orthogonalized matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz polynomial, from the page above."""
ITERATIONS = 4


class Muon(torch.optim.Optimizer):
    """Muon in float32, for all matrices of the same shape at once.

    torch's own Muon works in bfloat16, one matrix at a time. On a CPU without bfloat16 it takes four times as long as
    the network.

    Args:
        parameters: matrices.
        lr: learning rate.
        momentum: share of the old average in the running average of gradients.
        decay: decoupled weight decay, in units of the learning rate.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter; each must be a matrix with a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                moves = orthogonal(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, move in zip(parameters, moves, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"]).add_(move, alpha=-rate)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient's Nesterov momentum."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximately the nearest matrices whose singular values are all 1; `matrices` [n, rows, columns]."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), wide, beta=linear)
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide
