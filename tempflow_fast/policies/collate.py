"""Rows of several prompts, whose texts may differ in length, in one call of the network or in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from .prompt_cache import Row
from .template import Inputs, Mask, Rows, Slot, leaves

LENGTHS = "text lengths"
"""Name of the rows' lengths, where prompts differ in length and the network has no mask."""


def collate(rows: Sequence[Row], slots: Mapping[str, Slot]) -> Row:
    """Stacks rows; shorter texts are padded with zeros, and the network's mask says so.

    Args:
        rows: of every prompt.
        slots: of the network's arguments.

    Returns:
        Name -> [N, ...]. Masks and `LENGTHS` are there only where the lengths differ: attention has faster kernels
        without a mask, and whether the lengths differ is known here, on the host.
    """
    own = [slot for slot in leaves(slots) if isinstance(slot, Rows)]
    masks = [slot for slot in leaves(slots) if isinstance(slot, Mask)]
    tensors = {slot.name: _stacked([row[slot.name] for row in rows]) for slot in own}
    texts = [slot for slot in own if slot.text_dim is not None]
    if not texts:
        return tensors
    first = texts[0]
    assert first.text_dim is not None
    lengths = torch.tensor([row[first.name].shape[first.text_dim] for row in rows])
    if lengths.min() == lengths.max():
        return tensors
    device = tensors[first.name].device
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tensors |= {slot.name: mask.to(device, slot.dtype) for slot in masks}
    masked = masks or any(slot.is_mask for slot in own)
    if not masked or any(slot.dim is None for slot in own):
        tensors[LENGTHS] = lengths.to(device)
    return tensors


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    longest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [most - size for most, size in zip(longest, part.shape, strict=True)]
        padded.append(
            pad(part, [amount for more in reversed(missing) for amount in (0, more)]) if any(missing) else part
        )
    return torch.stack(padded)


def by_length(inputs: Inputs, texts: Sequence[Rows], predict: Callable[[Inputs], Tensor]) -> Tensor:
    """Calls the network once for each length of text that it cannot be told otherwise.

    Args:
        inputs: of R rows, with `LENGTHS` if they differ.
        texts: arguments of which every prompt brings its own.
        predict: the network, on rows of one length.

    Returns:
        [R, ...]
    """
    if LENGTHS not in inputs.rows:
        return predict(inputs)
    lengths = inputs.rows[LENGTHS].tolist()  # waits for the device
    groups = {length: [row for row, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))}
    parts = [predict(_cut(inputs, texts, length, rows)) for length, rows in groups.items()]
    order = torch.tensor([row for rows in groups.values() for row in rows], device=inputs.latents.device)
    return torch.cat(parts)[order.argsort()]


def _cut(inputs: Inputs, texts: Sequence[Rows], length: int, rows: list[int]) -> Inputs:
    """The rows of one length, without padding."""
    tensors = {name: tensor[rows] for name, tensor in inputs.rows.items() if name != LENGTHS}
    for slot in texts:
        if slot.text_dim is not None:
            tensors[slot.name] = tensors[slot.name].narrow(1 + slot.text_dim, 0, length)
    return replace(inputs, latents=inputs.latents[rows], time=inputs.time[rows], rows=tensors)
