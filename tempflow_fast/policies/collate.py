"""Rows of several prompts, whose texts and source images may differ in size, in one call of the network or more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .layouts import Layout
from .prompt_cache import Row
from .template import Inputs, Rows, padded

LENGTHS = "text lengths"
"""Name of the rows' lengths, where prompts differ in length and the network has no mask."""
LAYOUT = "layout"
"""Name of the rows' layouts, where one of them is not the first."""


def collate(rows: Sequence[Row], numbers: Sequence[int], layouts: Sequence[Layout]) -> Row:
    """Stacks rows; shorter texts are padded with zeros, and the network's mask says so.

    Args:
        rows: of every prompt.
        numbers: of their layouts.
        layouts: all.

    Returns:
        Name -> [N, ...]. Masks, `LENGTHS` and `LAYOUT` are there only where rows differ in these: attention has faster
        kernels without a mask, and whether they differ is known here, on the host.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    tensors = {name: _stacked([row.get(name) for row in rows]) for name in names}
    device = next(iter(tensors.values())).device
    if any(numbers):
        tensors[LAYOUT] = torch.tensor(numbers).to(device)
    used = [layouts[number] for number in numbers]
    texts = [next((slot for slot in layout.rows if slot.text_dim is not None), None) for layout in used]
    if any(text is None for text in texts):
        return tensors
    lengths = torch.tensor([_length(row, text) for row, text in zip(rows, texts, strict=True)])
    if lengths.min() == lengths.max():
        return tensors
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tensors |= {slot.name: mask.to(device, slot.dtype) for layout in used for slot in layout.masks}
    if any(not _has_mask(layout) for layout in used):
        tensors[LENGTHS] = lengths.to(device)
    return tensors


def _has_mask(layout: Layout) -> bool:
    """Whether rows of different lengths may be in one call."""
    masked = layout.masks or any(slot.is_mask for slot in layout.rows)
    return bool(masked) and all(slot.dim is not None for slot in layout.rows)


def _length(row: Row, text: Rows | None) -> int:
    assert text is not None
    assert text.text_dim is not None
    return row[text.name].shape[text.text_dim]


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    """Rows padded to the largest; a row that brings nothing is zeros."""
    known = [part for part in parts if part is not None]
    longest = [max(sizes) for sizes in zip(*(part.shape for part in known), strict=True)]
    return torch.stack([known[0].new_zeros(longest) if part is None else padded(part, longest) for part in parts])


def by_layout(inputs: Inputs, layouts: Sequence[Layout], predict: Callable[[Layout, Inputs], Tensor]) -> Tensor:
    """Calls the network once for each layout, and for each length of text that it cannot be told otherwise.

    Args:
        inputs: of R rows, with `LAYOUT` and `LENGTHS` if they differ.
        layouts: all.
        predict: the network, on rows that one call may hold.

    Returns:
        [R, ...]
    """
    if LENGTHS not in inputs.rows and LAYOUT not in inputs.rows:
        return predict(layouts[0], inputs)
    count = len(inputs.latents)
    # Both wait for the device.
    lengths = inputs.rows[LENGTHS].tolist() if LENGTHS in inputs.rows else [None] * count
    numbers = inputs.rows[LAYOUT].tolist() if LAYOUT in inputs.rows else [0] * count
    keys = list(zip(numbers, lengths, strict=True))
    groups = {key: [row for row, own in enumerate(keys) if own == key] for key in sorted(set(keys))}
    parts = [predict(layouts[key[0]], _cut(inputs, layouts[key[0]], key[1], rows)) for key, rows in groups.items()]
    order = torch.tensor([row for rows in groups.values() for row in rows], device=inputs.latents.device)
    return torch.cat(parts)[order.argsort()]


def _cut(inputs: Inputs, layout: Layout, length: int | None, rows: list[int]) -> Inputs:
    """The rows of one layout and length, without padding."""
    tensors = {slot.name: layout.part(slot, inputs.rows[slot.name][rows], length) for slot in layout.rows}
    if length is None:
        tensors |= {slot.name: inputs.rows[slot.name][rows] for slot in layout.masks if slot.name in inputs.rows}
    return replace(inputs, latents=inputs.latents[rows], time=inputs.time[rows], rows=tensors)
