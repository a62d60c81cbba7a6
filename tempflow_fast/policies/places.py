"""Where the latents are in a call of the network: alone, or next to those of source images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import fail

LATENTS, OTHERS = "latents", "images"
"""The parts of an argument in which the latents are not alone."""


@dataclass(frozen=True)
class Place:
    """Where the latents are in a call."""

    name: str
    shape: torch.Size
    """Of the latents of all rows together."""
    listed: bool = False
    dim: int | None = None
    """Along which something follows or precedes them; None: they are alone."""
    first: bool = True
    """Whether they come first."""
    whole: torch.Size | None = None
    """Shape of the argument, where they are not alone."""

    @property
    def output_shape(self) -> torch.Size:
        """Shape of what the network returns: that of its input, but for channels next to those of the latents."""
        if self.dim is None or self.whole is None:
            return self.shape
        channels = 2 if len(self.shape) == 3 else 1
        return self.shape if self.dim == channels else self.whole

    def separated(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of such a call, with the latents apart from what is next to them.

        Args:
            arguments: of any number of rows.
        """
        if self.dim is None:
            return dict(arguments)
        value = arguments[self.name]
        size, rest = self.shape[self.dim], value.shape[self.dim] - self.shape[self.dim]
        parts = value.split([size, rest] if self.first else [rest, size], self.dim)
        names = (LATENTS, OTHERS) if self.first else (OTHERS, LATENTS)
        return {**arguments, self.name: dict(zip(names, parts, strict=True))}


def bound(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name.

    Args:
        network: that is called.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    names = list(inspect.signature(type(network).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def place_of(arguments: Mapping[str, Any], latents: Tensor) -> Place:
    """Finds the latents among the arguments of a call, once or several times one after the other.

    Args:
        arguments: of the call.
        latents: [R, ...] random numbers.

    Raises:
        ValueError: if they are not there as they are, up to shape and precision.
    """
    for name, value in arguments.items():
        listed = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(part, Tensor) for part in value)
        if not listed and not isinstance(value, Tensor):
            continue
        found = torch.stack(list(value)) if listed and len({part.shape for part in value}) == 1 else value
        if isinstance(found, Tensor):
            if _holds(found, latents):
                return Place(name, found.shape, listed)
            if not listed and (joined := _joined(name, found, latents)) is not None:
                return joined
    shapes = {name: list(value.shape) for name, value in arguments.items() if isinstance(value, Tensor)}
    expected = f"one that gives its network the latents {list(latents.shape)} as drawn (see prepare_latents)"
    fail("DiffusersPolicy", "pipeline", expected, shapes)


def _joined(name: str, found: Tensor, latents: Tensor) -> Place | None:
    """The latents at one end of a dimension."""
    if found.dim() != latents.dim():
        return None
    longer = [dim for dim in range(1, found.dim()) if found.shape[dim] != latents.shape[dim]]
    if len(longer) != 1 or found.shape[longer[0]] < latents.shape[longer[0]]:
        return None
    dim, size = longer[0], latents.shape[longer[0]]
    for first in (True, False):
        own = found.narrow(dim, 0 if first else found.shape[dim] - size, size)
        if _holds(own, latents):
            return Place(name, own.shape, False, dim, first, found.shape)
    return None


def _holds(found: Tensor, latents: Tensor) -> bool:
    if latents.numel() == 0 or found.numel() % latents.numel() or not found.is_floating_point():
        return False
    copies = found.detach().reshape(-1, *latents.shape)
    return torch.equal(copies, latents.to(found.dtype).expand_as(copies))
