"""The exact velocity of the shapes world: the optimum of flow matching, summed over every scene a prompt describes.

Flow matching (arXiv 2210.02747) regresses on the velocity towards one random scene; its optimum is the mean over all
scenes that the noised image may come from. Here that mean is a sum over at most a few thousand scenes. As a target it
has the same optimum without the variance of a random scene (arXiv 2302.00670 does this for scores), and it shows how
much is left to learn.
"""

from __future__ import annotations

from torch import Tensor

DECIDED = 0.65
"""Below this sigma a noised image has only one likely scene: the variance of its possible velocities is 1e-3."""


class Posterior:
    """Expectations over scenes under the noise x = (1 - sigma) x0 + sigma e.

    Args:
        latents: latents [N, D] of all scenes.
    """

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents
        self._halved_squares = latents.square().sum(1) / 2

    def velocity(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """E[e - x0 | x], [R, D], when the scenes of `rows` are equally likely a priori.

        Args:
            x: noised latents [R, D].
            sigma: noise levels [R], above 0.
            rows: indices [n] of scenes, ascending.
        """
        chosen = _slice(rows)
        latents, share = self.latents[chosen], (1 - sigma)[:, None]
        # log p(x | x0) without the terms that do not depend on x0
        log_weight = share * (x @ latents.T - share * self._halved_squares[chosen]) / sigma.square()[:, None]
        return (x - log_weight.softmax(1) @ latents) / sigma[:, None]


def _slice(rows: Tensor) -> slice | Tensor:
    """`rows` as a slice if there are no gaps: a view avoids copying thousands of latents."""
    first, last = rows[0].item(), rows[-1].item()
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows
