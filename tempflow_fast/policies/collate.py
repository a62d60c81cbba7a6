"""Rows of several prompts, whose texts and source images may differ in size, in one call of the network or more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from .layouts import Layout
from .prompt_cache import Encoding, Row
from .template import Inputs, Rows, padded

Kind = tuple[Layout | None, int | None]
"""Of a row, known on the host: its layout, None without source images; and the length of its text, None where the
network is told by a mask or all are of one length."""
PLAIN: Kind = (None, None)


def collate(encodings: Sequence[Encoding]) -> tuple[Row, list[Kind]]:
    """Stacks rows; shorter texts are padded with zeros, and the network's mask says so.

    Args:
        encodings: of every prompt.

    Returns:
        Name -> [N, ...], and the kinds of the rows. Masks are there only where rows differ in length: attention has
        faster kernels without.
    """
    rows, layouts = zip(*encodings, strict=True)
    names = dict.fromkeys(name for row in rows for name in row)
    tensors = {name: _stacked([row.get(name) for row in rows]) for name in names}
    own = [layout if layout.has_images else None for layout in layouts]
    texts = [next((slot for slot in layout.rows if slot.text_dim is not None), None) for layout in layouts]
    lengths = [None if text is None else _length(row, text) for row, text in zip(rows, texts, strict=True)]
    if None in lengths or len(set(lengths)) == 1:
        return tensors, [(layout, None) for layout in own]
    sizes, device = torch.tensor(lengths), next(iter(tensors.values())).device
    mask = torch.arange(int(sizes.max())) < sizes[:, None]
    tensors |= {slot.name: mask.to(device, slot.dtype) for layout in layouts for slot in layout.masks}
    masked = all(map(_has_mask, layouts))
    return tensors, [(layout, None if masked else length) for layout, length in zip(own, lengths, strict=True)]


def _has_mask(layout: Layout) -> bool:
    """Whether rows of different lengths may be in one call."""
    masked = layout.masks or any(slot.is_mask for slot in layout.rows)
    return bool(masked) and all(slot.dim is not None for slot in layout.rows)


def _length(row: Row, text: Rows) -> int:
    assert text.text_dim is not None
    return row[text.name].shape[text.text_dim]


def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
    """Rows padded to the largest; a row that brings nothing is zeros."""
    known = [part for part in parts if part is not None]
    longest = [max(sizes) for sizes in zip(*(part.shape for part in known), strict=True)]
    return torch.stack([known[0].new_zeros(longest) if part is None else padded(part, longest) for part in parts])


def by_kind(
    inputs: Inputs, kinds: Sequence[tuple[Layout, int | None]], predict: Callable[[Layout, Inputs], Tensor]
) -> Tensor:
    """Calls the network once for each kind of row, without waiting for the device.

    Args:
        inputs: of R rows.
        kinds: of the rows.
        predict: the network, on rows that one call may hold.

    Returns:
        [R, ...]
    """
    runs: dict[tuple[Layout, int | None], list[slice]] = {}
    for kind, places in groupby(range(len(kinds)), key=kinds.__getitem__):
        first, *rest = places
        runs.setdefault(kind, []).append(slice(first, first + 1 + len(rest)))
    pieces: dict[int, Tensor] = {}
    for (layout, length), own in runs.items():
        made = predict(layout, _cut(inputs, layout, length, own))
        sizes = [run.stop - run.start for run in own]
        pieces |= zip((run.start for run in own), made.split(sizes), strict=True)
    return _joined(pieces[start] for start in sorted(pieces))


def _joined(parts: Iterable[Tensor]) -> Tensor:
    first, *rest = parts
    return torch.cat([first, *rest]) if rest else first


def _cut(inputs: Inputs, layout: Layout, length: int | None, runs: Sequence[slice]) -> Inputs:
    """Some rows of one kind, without padding."""

    def taken(tensor: Tensor) -> Tensor:
        return _joined(tensor[run] for run in runs)

    tensors = {slot.name: layout.part(slot, taken(inputs.rows[slot.name]), length) for slot in layout.rows}
    if length is None:
        tensors |= {slot.name: taken(inputs.rows[slot.name]) for slot in layout.masks if slot.name in inputs.rows}
    return replace(inputs, latents=taken(inputs.latents), time=taken(inputs.time), rows=tensors)
