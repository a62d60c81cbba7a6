"""What calls of the network have in common for prompts whose source images have the same sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .format import Format
from .learn import Facts, differ
from .prompt_cache import Row
from .template import Mask, Rows, Slot, argument, constants, leaves


@dataclass(frozen=True)
class Origin:
    """What a layout depends on in addition to source images."""

    pipeline: str
    """Name of the class."""
    format: Format
    device: torch.device

    def __str__(self) -> str:
        frames = "" if self.format.num_frames is None else f"{self.format.num_frames} frames of "
        return f"a {self.pipeline} of {frames}{self.format.height} x {self.format.width} pixels on {self.device}"


@dataclass(frozen=True, eq=False)
class Layout:
    """The calls for prompts whose source images have the same sizes.

    Args:
        facts: for this number of images.
        slots: argument -> how it is filled.
        shapes: name of what a prompt brings -> its shape, without the dimension that is as long as its text.
        origin: of the policy that found it.
        has_images: whether there are any.
    """

    facts: Facts
    slots: dict[str, Slot]
    shapes: dict[str, tuple[int, ...]]
    origin: Origin
    has_images: bool

    @property
    def rows(self) -> list[Rows]:
        """The arguments of which every prompt brings its own."""
        return [slot for slot in leaves(self.slots) if isinstance(slot, Rows)]

    @property
    def masks(self) -> list[Mask]:
        """The arguments that tell texts of different lengths apart."""
        return [slot for slot in leaves(self.slots) if isinstance(slot, Mask)]

    def is_like(self, other: Layout) -> bool:
        """Whether a call may hold rows of both.

        Args:
            other: of the same policy.
        """
        same = self.facts is other.facts and self.shapes == other.shapes
        return same and not differ(constants(self.slots), constants(other.slots))

    def part(self, slot: Rows, rows: Tensor, length: int | None) -> Tensor:
        """What belongs to this layout of rows that are padded for others.

        Args:
            slot: one of `rows`.
            rows: [R, ...].
            length: of their texts; None: the longest, with a mask.
        """
        shape = list(self.shapes[slot.name])
        if slot.text_dim is not None:
            shape.insert(slot.text_dim, rows.shape[1 + slot.text_dim] if length is None else length)
        for dim, size in enumerate(shape, start=1):
            rows = rows.narrow(dim, 0, size)
        return rows


def layout_of(facts: Facts, arguments: Mapping[str, Any], row: Row, origin: Origin, has_images: bool) -> Layout:
    """The layout of a call.

    Args:
        facts: for its number of source images.
        arguments: of the call, separated.
        row: what its prompt brings.
        origin: of the policy.
        has_images: whether its prompt has source images.
    """
    slots = facts.adapted(arguments, origin.device)
    shapes = {}
    for slot in leaves(slots):
        if isinstance(slot, Rows):
            shapes[slot.name] = tuple(size for dim, size in enumerate(row[slot.name].shape) if dim != slot.text_dim)
    return Layout(facts, slots, shapes, origin, has_images)


def row_of(facts: Facts, arguments: Mapping[str, Any], number: int, device: torch.device, dtype: torch.dtype) -> Row:
    """What a prompt brings to a call.

    Args:
        facts: for its number of source images.
        arguments: of the call, separated.
        number: of the prompt's row in the call.
        device: of the network.
        dtype: of the network.
    """
    row = {}
    for slot in leaves(facts.slots):
        if isinstance(slot, Rows):
            tensor = slot.of(argument(arguments, slot.name), number)
            # A copy: a part would keep the other half of the call in memory.
            row[slot.name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
    return row
