"""The moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..policies.base import Policy
from ..quiet import quiet


class WeightAverage:
    """diffusers' `EMAModel`, stepped by a hook of the optimizer after every `every`-th update.

    After update u the decay is u / (u + 9) until that reaches `decay`, as in the public scripts of Flow-GRPO and
    TempFlow-GRPO, so that the first weights are soon forgotten. An update that the optimizer skips, since its gradient
    is not finite, does not change the average.

    Args:
        policy: whose `parameters()` are averaged; the optimizer must hold the same parameters.
        optimizer: whose updates are counted.
        decay: share of the average that a step keeps, in [0, 1).
        every: number of updates per step of the average.
    """

    def __init__(self, policy: Policy, optimizer: Optimizer, decay: float, every: int) -> None:
        with quiet("diffusers", "transformers"):
            from diffusers.training_utils import EMAModel

        average = self

        class Average(EMAModel):
            def get_decay(self, optimization_step: int) -> Any:
                # The library's own rise counts steps of the average, not updates: `every` times as slow.
                usual = min(decay, average._num_updates / (average._num_updates + 9))
                # 1 where an optimizer that decides on the device has skipped this update (see `step_if_finite`).
                skipped = getattr(inner, "found_inf", None)
                return usual if skipped is None else 1 - (1 - usual) * (1 - skipped)

        inner: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no hooks
        self._parameters = policy.parameters()
        self._model = Average(self._parameters, decay=decay)
        self._every, self._num_updates = every, 0
        inner.register_step_post_hook(self._after_update)

    def _after_update(self, *_: Any) -> None:
        self._num_updates += 1
        if self._num_updates % self._every == 0:
            self._model.step(self._parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside this context the policy has the average weights, or its own before the first step of the average.

        Until then the average is what training began with, and a short run would save and score that.
        """
        if self._model.optimization_step == 0:
            yield
            return
        # The library's own `store` moves the weights to the host, but sharded weights must stay where they are.
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._model.copy_to(self._parameters)
        try:
            yield
        finally:
            for parameter, tensor in zip(self._parameters, trained, strict=True):
                parameter.data.copy_(tensor)

    @property
    def weights(self) -> list[Tensor]:
        """The average of each of the policy's parameters, in their order; change them in place."""
        return self._model.shadow_params

    def counts(self) -> dict[str, int]:
        """Returns the counters that `set_counts` takes."""
        return {"num_updates": self._num_updates, "num_steps": self._model.optimization_step}

    def set_counts(self, num_updates: int, num_steps: int) -> None:
        """Continues from the counters of an earlier average.

        Args:
            num_updates: updates of the optimizer.
            num_steps: steps of the average.
        """
        self._num_updates, self._model.optimization_step = num_updates, num_steps
