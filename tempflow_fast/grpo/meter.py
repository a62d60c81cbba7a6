"""What the gradients of an iteration say about each branch step, while it trains: signal and noise of two halves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import Parameter

from ..errors import require
from ..policies.sharding import gathered
from ..settings.iteration import GRPOConfig
from .branches import Branches
from .draw import draw_line
from .sketch import SKETCH_SIZE, Sketch

SIGNAL, NOISE = "signal_step_", "noise_step_"
"""Names of the metrics, before the step."""


def check_halves(function: str, config: GRPOConfig, num_prompts: int) -> None:
    """Refuses an adaptive budget where an update does not have two prompts.

    Args:
        function: the caller, for the error.
        config: the settings.
        num_prompts: P.
    """
    if config.branch_budget is None:
        return
    num = num_prompts * config.num_seeds
    least = min(len(_prompts(config, num, number)) for number in range(config.num_updates))
    expected = 'enough for two in every update, with branch_budget "adaptive"'
    require(least >= 2, function, "prompts", expected, f"{num_prompts} in {config.num_updates} updates")


def _prompts(config: GRPOConfig, num_trajectories: int, update: int) -> list[int]:
    """The prompts of an update."""
    return sorted({n // config.num_seeds for n in range(update, num_trajectories, config.num_updates)})


def _halves(config: GRPOConfig, num_trajectories: int, update: int) -> Tensor:
    """Int64 [N]: 0 and 1 for the trajectories of the two halves of an update, -1 for those of other updates.

    Every second prompt of the update is in the second half: trajectories of one prompt share more than the policy.
    """
    rank = {prompt: place % 2 for place, prompt in enumerate(_prompts(config, num_trajectories, update))}
    own = range(update, num_trajectories, config.num_updates)
    halves = torch.full((num_trajectories,), -1)
    halves[list(own)] = torch.tensor([rank[n // config.num_seeds] for n in own])
    return halves


def measured_groups(branches: Branches, config: GRPOConfig, update: int) -> list[Tensor]:
    """The pairs of an update whose gradients are told apart: those of one half at one branch step.

    Args:
        branches: of all processes.
        config: the settings.
        update: its number.

    Returns:
        2 B masks, bool [G]: the B steps of the first half, then those of the second.
    """
    halves = _halves(config, branches.num_trajectories, update)[branches.trajectories]
    steps = [step for step, _ in config.branch_counts]
    return [(halves == half) & (branches.steps == step) for half in (0, 1) for step in steps]


class StepMeter:
    """Measures the gradients of the groups of pairs of an iteration, without a pass of its own.

    The sketch of a gradient is linear, so that of a group is what the sketch of the accumulated gradient changes by
    during the group's backward passes.

    Let g_A, g_B be the gradients of a branch step in the two halves of an update, as means over the n_A, n_B
    trajectories of each (over prompts with prompt groups, where the trajectories of a prompt share their draw), and p
    the probability of the step. Halves are independent, so that signal = g_A . g_B is |E g|^2 on average, and
    n_A (|g_A|^2 - signal) + signal is E |g|^2 of one trajectory that draws the step with probability p. Times p it is
    that of a trajectory which always branches there; less the signal, it is the noise. So neither depends on N, m or p.
    Trajectories count as independent; what those of a prompt have in common adds to the noise.

    Args:
        parameters: of the policy, whose gradients accumulate.
        branches: of all processes.
        config: the settings, with the probabilities of this iteration.
    """

    def __init__(self, parameters: Sequence[Parameter], branches: Branches, config: GRPOConfig) -> None:
        self._parameters, self._num = parameters, branches.num_trajectories
        self._config, self._steps = config, [step for step, _ in config.branch_counts]
        m = config.branches_per_trajectory
        self._probabilities = (1.0,) * len(self._steps) if m is None else draw_line(config, m).probabilities
        self._sketch = Sketch(sum(parameter.numel() for parameter in parameters), SKETCH_SIZE)
        self._found: dict[int, dict[int, Tensor]] = {number: {} for number in range(config.num_updates)}

    def note(self, update: int, group: int) -> None:
        """Takes down the accumulated gradient after a group.

        Args:
            update: its number.
            group: its number in `measured_groups`; they must come in ascending order.
        """
        self._found[update][group] = self._sketch(
            torch.zeros_like(each) if each.grad is None else gathered(each.grad) for each in self._parameters
        )

    def metrics(self) -> dict[str, Tensor]:
        """What was found, as a mean over updates; those that were not finite are left out.

        Returns:
            signal_step_<i> and noise_step_<i>, scalars. One estimate of the signal is mostly noise: average many.
        """
        of_updates = torch.stack([self._of_update(number) for number in self._found])
        finite = of_updates.isfinite().all(dim=(1, 2))
        means = of_updates.masked_fill(~finite[:, None, None], 0).sum(0) / finite.sum()
        named: dict[str, Tensor] = {}
        for name, values in zip((SIGNAL, NOISE), means, strict=True):
            named |= {f"{name}{step}": value for step, value in zip(self._steps, values, strict=True)}
        return named

    def _of_update(self, number: int) -> Tensor:
        """Signal and noise of every branch step, [2, B], in an update."""
        device, found = self._parameters[0].device, self._found[number]
        products = torch.zeros(3, len(self._steps), device=device)
        parts = self._parts(found)
        for place in range(len(self._steps)):
            one, other = parts.get(place), parts.get(place + len(self._steps))
            for row, (left, right) in enumerate(((one, other), (one, one), (other, other))):
                if left is not None and right is not None:
                    products[row, place] = left.dot(right)
        halves = _halves(self._config, self._num, number)
        rows = [(halves == half).nonzero().flatten() for half in (0, 1)]
        # The loss is a mean over the pairs of an update, of which each trajectory has as many.
        scales = [sum(map(len, rows)) / len(each) for each in rows]
        prompts = self._config.group == "prompt"
        sizes = [len((each // self._config.num_seeds).unique()) if prompts else len(each) for each in rows]
        signal = products[0] * (scales[0] * scales[1])
        squares = [
            size * (product * scale**2 - signal) + signal
            for size, scale, product in zip(sizes, scales, products[1:], strict=True)
        ]
        second = torch.tensor(self._probabilities, device=device) * (squares[0] + squares[1]) / 2
        return torch.stack([signal, second - signal])

    def _parts(self, found: dict[int, Tensor]) -> dict[int, Tensor]:
        """Group -> the sketch of its own gradient, for those that were run."""
        order = list(found)
        later = {group: found[group] - found[earlier] for earlier, group in pairwise(order)}
        return {group: found[group] for group in order[:1]} | later
