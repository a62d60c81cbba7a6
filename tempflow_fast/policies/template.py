"""The arguments of a network's call, taken apart into what is the same in every call and what each row brings."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import fail

BATCH = 3
"""The number of prompts of the call that is compared with the call for one prompt."""


@dataclass(frozen=True)
class Inputs:
    """What a call of the network is made of."""

    latents: Tensor
    """[R, *latent_shape], in the network's precision."""
    time: Tensor
    """float32 [R], as the network takes it."""
    guidance_scale: float
    rows: Mapping[str, Tensor]
    """Name of an argument -> [R, ...]."""


@dataclass(frozen=True)
class Constant:
    """An argument that is the same in every call."""

    value: Any

    def fill(self, inputs: Inputs) -> Any:
        return self.value


@dataclass(frozen=True)
class Repeated:
    """A list with the same value for every row."""

    value: Any

    def fill(self, inputs: Inputs) -> Any:
        return [self.value] * len(inputs.latents)


@dataclass(frozen=True)
class Nested:
    """Arguments inside of an argument."""

    slots: dict[str, Slot] | list[Slot]

    def fill(self, inputs: Inputs) -> Any:
        if isinstance(self.slots, dict):
            return {name: slot.fill(inputs) for name, slot in self.slots.items()}
        return [slot.fill(inputs) for slot in self.slots]


@dataclass(frozen=True)
class Rows:
    """A tensor that every prompt brings its own of."""

    name: str
    dim: int | None = 0
    """Dimension of the rows in the network's argument; None: it is for all rows and depends on their length alone."""
    listed: bool = False
    """Whether the argument is a list with a tensor for every row."""
    text_dim: int | None = None
    """Dimension in one row that is as long as the prompt; None: the same for all prompts."""
    is_mask: bool = False
    num_dims: int = 0
    """Of one row."""

    def fill(self, inputs: Inputs) -> Any:
        rows = inputs.rows[self.name]
        if self.dim is None:
            return rows[0]
        return list(rows) if self.listed else rows.movedim(0, self.dim)

    def of(self, argument: Any, row: int) -> Tensor:
        """One row of the network's argument."""
        if self.dim is None:
            return argument
        tensor: Tensor = argument[row] if self.listed else argument.select(self.dim, row)
        return tensor


@dataclass(frozen=True)
class Mask:
    """An argument that is None unless prompts of different lengths are in the call."""

    name: str
    dtype: torch.dtype

    def fill(self, inputs: Inputs) -> Tensor | None:
        return inputs.rows.get(self.name)


@dataclass(frozen=True)
class Latents:
    """The latents, a row of which may have a shape of its own."""

    shape: tuple[int, ...]
    listed: bool

    def fill(self, inputs: Inputs) -> Any:
        hidden = inputs.latents.reshape(-1, *self.shape)
        return list(hidden) if self.listed else hidden


@dataclass(frozen=True)
class Time:
    """The noise level in the network's terms."""

    def fill(self, inputs: Inputs) -> Tensor:
        return inputs.time


@dataclass(frozen=True)
class Guidance:
    """The guidance scale as an input of the network."""

    factor: float

    def fill(self, inputs: Inputs) -> Tensor:
        return torch.full_like(inputs.time, self.factor * inputs.guidance_scale)


Slot = Constant | Repeated | Nested | Rows | Mask | Latents | Time | Guidance


@dataclass(frozen=True)
class Place:
    """Where the latents are in a call."""

    name: str
    shape: torch.Size
    """Of all rows together."""
    listed: bool


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
        listed = _is_list_of_tensors(value)
        if not listed and not isinstance(value, Tensor):
            continue
        found = torch.stack(value) if listed and len({part.shape for part in value}) == 1 else value
        if isinstance(found, Tensor) and _holds(found, latents):
            return Place(name, found.shape, listed)
    shapes = {name: list(value.shape) for name, value in arguments.items() if isinstance(value, Tensor)}
    fail("DiffusersPolicy", "pipeline", f"one that gives its network the latents {list(latents.shape)}", shapes)


def _holds(found: Tensor, latents: Tensor) -> bool:
    if latents.numel() == 0 or found.numel() % latents.numel() or not found.is_floating_point():
        return False
    copies = found.detach().reshape(-1, *latents.shape)
    return torch.equal(copies, latents.to(found.dtype).expand_as(copies))


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(part, Tensor) for part in value)


def template_of(one: Mapping[str, Any], many: Mapping[str, Any], latents: Tensor) -> dict[str, Slot]:
    """Compares a call for one prompt with one for `BATCH` prompts, the first of which is the same and the shortest.

    Args:
        one: arguments of the call for one prompt.
        many: those of the other call.
        latents: [1, *latent_shape] of the first call.

    Returns:
        Name of an argument -> what it is. Time and guidance are still `Constant` or `Rows`.
    """
    place = place_of(one, latents)
    slots = {name: _slot(name, value, many.get(name)) for name, value in one.items() if name != place.name}
    return {**slots, place.name: Latents(tuple(place.shape[1:]), place.listed)}


def _slot(name: str, one: Any, many: Any) -> Slot:
    if isinstance(one, Tensor) and isinstance(many, Tensor):
        return _tensor_slot(name, one, many)
    if one is None and isinstance(many, Tensor):
        return Mask(name, many.dtype)
    if isinstance(one, (list, tuple)) and isinstance(many, (list, tuple)):
        if len(one) == 1 and len(many) == BATCH:
            return _listed_slot(name, one, many)
        if len(one) == len(many) and any(isinstance(part, Tensor) for part in one):
            pairs = enumerate(zip(one, many, strict=True))
            return Nested([_slot(f"{name}.{index}", *pair) for index, pair in pairs])
    if isinstance(one, dict) and isinstance(many, dict) and one.keys() <= many.keys():
        # Others tell the padding of texts in a batch, and here texts of one length share a call.
        return Nested({key: _slot(f"{name}.{key}", value, many[key]) for key, value in one.items()})
    if one != many:
        _refuse(name, one, many)
    return Constant(one)


def _listed_slot(name: str, one: Sequence[Any], many: Sequence[Any]) -> Slot:
    if isinstance(one[0], Tensor):
        longer = [dim for dim, (a, b) in enumerate(zip(one[0].shape, many[-1].shape, strict=True)) if a != b]
        return Rows(name, listed=True, text_dim=longer[0] if longer else None, num_dims=one[0].dim())
    if any(part != one[0] for part in many):
        _refuse(name, one, many)
    return Repeated(one[0])


def _tensor_slot(name: str, one: Tensor, many: Tensor) -> Slot:
    if one.dim() != many.dim():
        _refuse(name, one, many)
    differ = [dim for dim, (a, b) in enumerate(zip(one.shape, many.shape, strict=True)) if a != b]
    rows = [dim for dim in differ if one.shape[dim] == 1 and many.shape[dim] == BATCH]
    if rows and len(differ) <= 2:
        texts = [dim - (dim > rows[0]) for dim in differ if dim != rows[0]]
        masked = bool(texts) and not one.is_floating_point()
        return Rows(name, rows[0], text_dim=texts[0] if texts else None, is_mask=masked, num_dims=one.dim() - 1)
    if len(differ) == 1:  # such as positions
        return Rows(name, None, text_dim=differ[0], num_dims=one.dim())
    if differ or not torch.equal(one, many):
        _refuse(name, one, many)
    return Constant(one)


def _refuse(name: str, one: Any, many: Any) -> NoReturn:
    known = "arguments of the network that are the same for all prompts, or one for each of them"
    fail("DiffusersPolicy", "pipeline", f"one with {known}", f"{name}: {_described(one)} and {_described(many)}")


def _described(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]


def fill(slots: Mapping[str, Slot], inputs: Inputs) -> dict[str, Any]:
    """The arguments of a call.

    Args:
        slots: of the network's arguments.
        inputs: what they are filled with.
    """
    return {name: slot.fill(inputs) for name, slot in slots.items()}


def moved(slot: Slot, device: torch.device) -> Slot:
    """A slot whose constant is on the device, at an address that stays.

    Args:
        slot: of a template.
        device: of the network.
    """
    if isinstance(slot, Constant) and isinstance(slot.value, Tensor):
        return Constant(slot.value.to(device))
    return slot


def leaves(slots: Mapping[str, Slot]) -> Iterator[Slot]:
    """All slots that hold no others.

    Args:
        slots: of a template.
    """
    for slot in slots.values():
        if isinstance(slot, Nested):
            inner = slot.slots if isinstance(slot.slots, dict) else dict(enumerate(slot.slots))
            yield from leaves({str(key): part for key, part in inner.items()})
        else:
            yield slot


def argument(arguments: Mapping[str, Any], path: str) -> Any:
    """The argument at a path such as "texts.0".

    Args:
        arguments: of a call.
        path: names and indices.
    """
    name, *inner = path.split(".")
    value = arguments[name]
    for key in inner:
        value = value[int(key)] if isinstance(value, (list, tuple)) else value[key]
    return value
