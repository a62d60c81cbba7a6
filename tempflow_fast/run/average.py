"""The moving average of the weights that training changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..policies.base import Policy
from ..quiet import quiet


class WeightAverage:
    """diffusers' `EMAModel`, moved by the optimizer itself: after every `every`-th of its updates.

    The decay rises from 0 to its value as (1 + n) / (10 + n) does, so that the first weights are soon forgotten.

    Args:
        policy: whose `parameters()` are averaged; they must be the ones that the optimizer holds.
        optimizer: whose updates count.
        decay: share of the average that a step keeps.
        every: updates from one step to the next.
    """

    def __init__(self, policy: Policy, optimizer: Optimizer, decay: float, every: int) -> None:
        with quiet("diffusers", "transformers"):
            from diffusers.training_utils import EMAModel

        self._parameters = policy.parameters()
        self._model = EMAModel(self._parameters, decay=decay)
        self._every, self._num_updates = every, 0
        # accelerate hands out a wrapper around the optimizer, which keeps no hooks.
        getattr(optimizer, "optimizer", optimizer).register_step_post_hook(self._after_update)

    def _after_update(self, *_: Any) -> None:
        self._num_updates += 1
        if self._num_updates % self._every == 0:
            self._model.step(self._parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside this context the policy has the average weights."""
        # Not the library's own store, which moves them to the host: sharded weights have to stay where they are.
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._model.copy_to(self._parameters)
        try:
            yield
        finally:
            for parameter, tensor in zip(self._parameters, trained, strict=True):
                parameter.data.copy_(tensor)

    @property
    def weights(self) -> list[Tensor]:
        """The average of each of the policy's parameters, in their order; to be changed in place."""
        return self._model.shadow_params

    def counts(self) -> dict[str, int]:
        """How far it has come, for `set_counts`."""
        return {"num_updates": self._num_updates, "num_steps": self._model.optimization_step}

    def set_counts(self, num_updates: int, num_steps: int) -> None:
        """Goes on from there."""
        self._num_updates, self._model.optimization_step = num_updates, num_steps
