"""The exact velocity of the shapes world: flow matching's best answer, by summing over every scene a prompt describes.

Flow matching (arXiv 2210.02747) regresses on the velocity towards one scene drawn at random; what it learns is the mean
over all scenes that the noised image may come from. Here that mean is a sum over at most a few thousand scenes. As a
target it has the same minimum without the variance of the draw (as arXiv 2302.00670 does for scores), and it measures
what is left to learn.
"""

from __future__ import annotations

from torch import Tensor

DECIDED = 0.65
"""Below this sigma a noised image has one possible scene: the velocities it may have differ by a variance of 1e-3."""


class Posterior:
    """Expectations over scenes under the noise x = (1 - sigma) x0 + sigma e.

    Args:
        latents: [N, D], of all scenes.
    """

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents
        self._halved_squares = latents.square().sum(1) / 2

    def velocity(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """E[e - x0 | x], [R, D], where every scene of `rows` [n], ascending, is equally likely.

        Args:
            x: [R, D].
            sigma: [R], above 0.
        """
        chosen = _slice(rows)
        latents, share = self.latents[chosen], (1 - sigma)[:, None]
        # log p(x | x0) without what does not depend on x0
        log_weight = share * (x @ latents.T - share * self._halved_squares[chosen]) / sigma.square()[:, None]
        return (x - log_weight.softmax(1) @ latents) / sigma[:, None]


def _slice(rows: Tensor) -> slice | Tensor:
    """`rows` as a slice where they have no gaps: a view spares copying thousands of latents."""
    first, last = rows[0].item(), rows[-1].item()
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows
