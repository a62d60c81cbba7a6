"""The arguments of a network's call, taken apart into what is the same in every call and what each row brings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import fail
from .places import OTHERS, place_of

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
class Joined:
    """The latents and, next to them along one dimension, what every row brings: the latents of its source images."""

    latents: Latents
    others: Rows
    dim: int
    first: bool
    """Whether the latents come first."""

    def fill(self, inputs: Inputs) -> Tensor:
        parts = [self.latents.fill(inputs), self.others.fill(inputs)]
        return torch.cat(parts if self.first else parts[::-1], self.dim)


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


Slot = Constant | Repeated | Nested | Rows | Mask | Latents | Joined | Time | Guidance


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
    own = Latents(tuple(place.shape[1:]), place.listed)
    if place.dim is None:
        return {**slots, place.name: own}
    parts = (place.separated(arguments)[place.name][OTHERS] for arguments in (one, many))
    others = _slot(f"{place.name}.{OTHERS}", *parts)
    assert isinstance(others, Rows)
    return {**slots, place.name: Joined(own, others, place.dim, place.first)}


def stacked(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of a call for several prompts, made of calls for one each: some pipelines take one at a time.

    Args:
        calls: arguments for each prompt; the first has the shortest text.
    """
    batch = {name: _together([call[name] for call in calls]) for name in calls[0]}
    for name, value in batch.items():
        text = batch.get(name.removesuffix("_mask"))
        if value is None and isinstance(text, Tensor) and text.shape[1:2] != calls[0][name[:-5]].shape[1:2]:
            batch[name] = torch.ones(text.shape[:2], dtype=torch.bool)  # the mask of a text, None where it is alone
    return batch


def _together(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.dim() and len(first) == 1:
        longest = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)][1:]
        return torch.cat([padded(value[0], longest)[None] for value in values])
    if isinstance(first, (list, tuple)) and len(first) == 1:
        return [part for value in values for part in value]
    return first


def padded(part: Tensor, longest: Sequence[int]) -> Tensor:
    """A tensor with zeros after its end in every dimension.

    Args:
        part: of any shape.
        longest: the shape that it gets.
    """
    missing = [most - size for most, size in zip(longest, part.shape, strict=True)]
    return pad(part, [amount for more in reversed(missing) for amount in (0, more)]) if any(missing) else part


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


def adapted(slot: Slot, value: Any, device: torch.device) -> Slot:
    """The same slot for source images of other sizes, on which constants may depend.

    Args:
        slot: of a template.
        value: the argument in a call for one prompt with such images.
        device: of the network, on which constants keep their addresses.
    """
    if isinstance(slot, Constant):
        return Constant(value.to(device) if isinstance(value, Tensor) else value)
    if isinstance(slot, Repeated):
        return Repeated(value[0])
    if not isinstance(slot, Nested):
        return slot
    if isinstance(slot.slots, dict):
        return Nested({key: adapted(part, value[key], device) for key, part in slot.slots.items()})
    return Nested([adapted(part, inner, device) for part, inner in zip(slot.slots, value, strict=True)])


def constants(slots: Mapping[str, Slot]) -> list[Any]:
    """The values that are the same in every call.

    Args:
        slots: of a template.
    """
    return [slot.value for slot in leaves(slots) if isinstance(slot, (Constant, Repeated))]


def leaves(slots: Mapping[str, Slot]) -> Iterator[Slot]:
    """All slots that hold no others, but for the latents in a `Joined`.

    Args:
        slots: of a template.
    """
    for slot in slots.values():
        if isinstance(slot, Nested):
            inner = slot.slots if isinstance(slot.slots, dict) else dict(enumerate(slot.slots))
            yield from leaves({str(key): part for key, part in inner.items()})
        else:
            yield slot.others if isinstance(slot, Joined) else slot


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
