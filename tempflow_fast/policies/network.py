"""What every policy around one network shares: its parameters, and the reference from which training started."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn
from torch.nn import Parameter

from .lora import adapters_disabled, has_adapter


class NetworkPolicy:
    """Base of a `Policy` that trains one network; a subclass adds encode, velocity, decode, sigmas and save.

    Args:
        network: what to train; its parameters that take no gradient stay as they are.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._frozen: nn.Module | None = None
        self._is_reference = False

    @property
    def acting(self) -> nn.Module:
        """The module that `velocity` has to call: `network`, or its frozen copy inside `reference`."""
        return self._frozen if self._is_reference and self._frozen is not None else self.network

    def parameters(self) -> list[Parameter]:
        """The parameters of the network that take a gradient."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def freeze_reference(self) -> None:
        """Copies the network for `reference`, unless that is done or an adapter makes it needless.

        A sharded or data-parallel wrapper does not copy well: call this before one takes the network's place.
        """
        if self._frozen is None and not has_adapter(self.network):
            self._frozen = copy.deepcopy(self.network).requires_grad_(False)

    def reference(self) -> AbstractContextManager[None]:
        """`velocity` of the policy from which training started: without the adapter, or by the frozen copy."""
        return adapters_disabled(self.network) if has_adapter(self.network) else self._frozen_acting()

    @contextmanager
    def _frozen_acting(self) -> Iterator[None]:
        self.freeze_reference()
        self._is_reference = True
        try:
            yield
        finally:
            self._is_reference = False
