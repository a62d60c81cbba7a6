"""What every policy around one network shares: its parameters, and the reference from which training started."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn

from torch import nn
from torch.nn import Parameter

from ..errors import fail
from .base import guides
from .lora import adapters_disabled, described, has_adapter


class NetworkPolicy:
    """Base of a `Policy` that trains one network; a subclass adds the other methods and attributes of the protocol.

    Args:
        network: the module to train; its parameters that require no gradient are not trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._frozen: nn.Module | None = None
        self._is_reference = False

    def __repr__(self) -> str:
        total = sum(parameter.numel() for parameter in self.network.parameters())
        trained = sum(parameter.numel() for parameter in self.parameters())
        known = {name: getattr(self, name, None) for name in ("latent_shape", "dtype", "device")}
        settings = ", ".join(f"{name}={value}" for name, value in known.items())
        adapter = described(self.network)
        return f"{type(self).__name__}(parameters={total:,}, trained={trained:,}, {settings}, adapter={adapter})"

    @property
    def acting(self) -> nn.Module:
        """The module that `velocity` has to call: `network`, or its frozen copy inside `reference`."""
        return self._frozen if self._is_reference and self._frozen is not None else self.network

    def guides(self, guidance_scale: float) -> bool:
        """Whether `velocity` gives two velocities at this guidance scale: above 1.

        Args:
            guidance_scale: g.
        """
        return guides(guidance_scale)

    def parameters(self) -> list[Parameter]:
        """The parameters of the network that require a gradient."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def freeze_reference(self) -> None:
        """Copies the network for `reference`, unless there is a copy already or an adapter makes it unnecessary.

        A sharded or data-parallel wrapper cannot be copied reliably: call this before one replaces the network.
        """
        if self._frozen is None and not has_adapter(self.network):
            self._frozen = copy.deepcopy(self.network).requires_grad_(False)

    def reference(self) -> AbstractContextManager[None]:
        """Inside this context `velocity` is that of the start of training: without the adapter, or the frozen copy.

        Raises:
            ValueError: if `velocity` calls `network` where the frozen copy acts: its KL to itself would always be 0.
        """
        return adapters_disabled(self.network) if has_adapter(self.network) else self._frozen_acting()

    @contextmanager
    def _frozen_acting(self) -> Iterator[None]:
        self.freeze_reference()
        self._is_reference = True
        watched = self.network.register_forward_pre_hook(_refuse)
        try:
            yield
        finally:
            watched.remove()
            self._is_reference = False


def _refuse(network: nn.Module, inputs: object) -> NoReturn:
    fail(
        "reference", "policy", "one whose velocity calls self.acting, the frozen network here", "a call of self.network"
    )
