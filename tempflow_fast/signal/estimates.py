"""Gradients of independent iterations -> how much of them is signal, with errors.

At a fixed policy the gradient g of an iteration is random. Iterations are independent, so an inner product of the
gradients of two different ones is, on average, |E g|^2, the signal; that of a gradient with itself is |E g|^2 plus the
variance, the sum of the variances of its elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import fail

MIN_ITERATIONS = 3
"""Leaving one out must leave two different iterations."""
COLUMNS = 1 << 18
"""Elements of the gradients multiplied at once."""


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        known = math.isfinite(self.value) and math.isfinite(self.error)
        return f"{self.value:.3g} +- {self.error:.1g}" if known else "-"


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known about A sources of gradients, for example the branch steps of one or more settings.

    The leading dimensions [...] are those of a set of estimates: none, or the M estimates that each leave out one
    iteration.
    """

    signal: Tensor
    """E g_a . E g_b, float64 [..., A, A]."""
    second: Tensor
    """E [g_a . g_b] within one iteration, float64 [..., A, A]."""

    @property
    def covariance(self) -> Tensor:
        """The covariance of g_a and g_b, summed over elements, [..., A, A]; its diagonal is the variance."""
        return self.second - self.signal

    def combined(self, weights: Tensor) -> Moments:
        """The moments of weighted sums of the sources.

        Args:
            weights: [C, A].

        Returns:
            The moments of C sums.
        """
        weights = weights.to(self.signal)
        return Moments(weights @ self.signal @ weights.T, weights @ self.second @ weights.T)

    def snr2(self, source: int = 0) -> Tensor:
        """|E g|^2 / variance of one source [...]: 1 / snr2 iterations show the direction of its gradient."""
        return self.signal[..., source, source] / self.covariance[..., source, source]

    def effective_snr2(self, source: int, reference: int) -> Tensor:
        """The snr2 of a source, counting only its signal in the direction of another source's [...].

        (E g . E r)^2 / |E r|^2 / variance of g: the figure for an approximation g of r, whose gradient may point
        elsewhere.
        """
        along = self.signal[..., source, reference].square() / self.signal[..., reference, reference]
        return along / self.covariance[..., source, source]

    def cosine(self, first: int, second: int) -> Tensor:
        """The cosine of two sources' expected gradients [...]; NaN where a signal is lost in the noise."""
        norms = self.signal[..., first, first] * self.signal[..., second, second]
        return self.signal[..., first, second] / norms.clamp(min=0).sqrt()

    def correlation(self, first: int, second: int) -> Tensor:
        """The correlation of two sources' noise within an iteration [...]."""
        norms = self.covariance[..., first, first] * self.covariance[..., second, second]
        return self.covariance[..., first, second] / norms.sqrt()


class GradientMoments:
    """Estimates of the moments of A sources from M independent iterations, and the errors of what follows from them.

    Args:
        gradients: float32 [A, M, D] on the host; gradients of one iteration may depend on one another.

    Raises:
        ValueError: for fewer than three iterations.
    """

    def __init__(self, gradients: Tensor) -> None:
        self.num_sources, self.num_iterations = gradients.shape[:2]
        if self.num_iterations < MIN_ITERATIONS:
            fail("GradientMoments", "gradients", f"of {MIN_ITERATIONS} or more iterations", self.num_iterations)
        products = _products(gradients)
        diagonal = products.diagonal(dim1=1, dim2=3)  # [A, A, M]
        within, every = diagonal.sum(-1), products.sum((1, 3))
        self.all = self._moments(within, every, self.num_iterations)
        rows, columns = products.sum(3).movedim(1, 0), products.sum(1).movedim(2, 0)  # [M, A, A]
        own = diagonal.movedim(2, 0)
        self._left_out = self._moments(within - own, every - rows - columns + own, self.num_iterations - 1)

    @staticmethod
    def _moments(within: Tensor, every: Tensor, count: int) -> Moments:
        return Moments((every - within) / (count * (count - 1)), within / count)

    def estimate(self, statistic: Callable[[Moments], Tensor]) -> Estimate:
        """A statistic and its standard error, by the jackknife over iterations.

        Args:
            statistic: maps moments [..., A, A] to [...].
        """
        values = statistic(self._left_out)
        count = self.num_iterations
        error = math.sqrt((count - 1) / count * (values - values.mean()).square().sum().item())
        return Estimate(statistic(self.all).item(), error)

    def ratio(self, first: Callable[[Moments], Tensor], second: Callable[[Moments], Tensor]) -> Estimate:
        """The ratio of two statistics; its error takes into account that both come from the same iterations."""
        return self.estimate(lambda moments: first(moments) / second(moments))


def iterations_to_distinguish(ratio: Estimate, num_iterations: int, errors: float = 2.0) -> int | None:
    """How many iterations would tell two settings apart.

    Args:
        ratio: of their figures, measured with `num_iterations`.
        num_iterations: M.
        errors: how many standard errors the ratio has to be from 1.

    Returns:
        The number of iterations in all, since errors fall as 1 / sqrt(M); None if the ratio is 1 or not finite.
    """
    distance = abs(ratio.value - 1)
    if not (distance > 0 and math.isfinite(distance) and math.isfinite(ratio.error)):
        return None
    return max(MIN_ITERATIONS, math.ceil(num_iterations * (errors * ratio.error / distance) ** 2))


def _products(gradients: Tensor) -> Tensor:
    """The inner products of all gradients, float64 [A, M, A, M]."""
    num_sources, num_iterations = gradients.shape[:2]
    rows = gradients.flatten(0, 1)
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for piece in rows.split(COLUMNS, dim=1):
        exact = piece.double()
        total += exact @ exact.T
    return total.view(num_sources, num_iterations, num_sources, num_iterations)
