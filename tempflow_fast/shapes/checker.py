"""The exact rule-based judge of shape images: finds and names every blob, then compares with GenEval metadata.

`strict` is for evaluation: an image must show every requested object and nothing else, and each object must match its
template cleanly. `reward` is for training: half of it is `strict`, half is partial credit. Both process the whole batch
at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from tempflow_fast import geneval
from tempflow_fast.errors import require
from tempflow_fast.shapes.world import BACKGROUND, COLORS, IMAGE_SIZE, SHAPE_SIZE, SHAPES, templates

FOREGROUND = 0.33
"""RGB distance from the background above which a pixel belongs to a blob; the nearest colour, purple, is 0.60 away."""
CORE = 0.45
"""Distance above which a pixel counts towards the colour of its blob; paler pixels are edges."""
MIN_AREA = 6
"""Blobs of fewer pixels are specks. A speck is not an object, but `MAX_SPECKS` pixels of them spoil a strict match."""
MAX_SPECKS = 8
MIN_MATCH = 0.93
"""Dice overlap with the template; the closest two templates (circle, square) overlap by 0.91."""
MIN_MARGIN = 0.03
"""How much better the best template must be than the second."""
MAX_COLOR_ERROR = 0.35
"""RGB distance of a blob's core colour from the palette; the closest two colours (blue, purple) are 0.62 apart."""
PARTIAL_FLOOR = 0.75
"""Dice overlap up to which there is no partial credit; `MIN_MATCH` earns full credit."""


@dataclass(frozen=True)
class Blob:
    """One connected region of foreground."""

    matches: tuple[float, ...]  # Dice overlap with each of SHAPES at its best position
    kind: str | None  # the shape, if one template matches well and clearly better than the others
    color: str | None  # the palette colour nearest to its core, if close enough
    center: tuple[float, float]  # x, y in pixels

    def is_a(self, entry: Mapping) -> bool:
        """Whether this is what a metadata entry asks for, regardless of the count."""
        return self.kind == entry["class"] and entry.get("color") in (None, self.color)

    def credit(self, entry: Mapping) -> float:
        """How close this is to what the entry asks for, in [0, 1]."""
        match = self.matches[SHAPES.index(entry["class"])]
        shape = min(max((match - PARTIAL_FLOOR) / (MIN_MATCH - PARTIAL_FLOOR), 0.0), 1.0)
        if self.kind not in (None, entry["class"]):
            shape *= 0.25
        return shape if entry.get("color") in (None, self.color) else 0.4 * shape


@dataclass(frozen=True)
class Reading:
    """What the checker sees in one image."""

    blobs: tuple[Blob, ...]
    speck_pixels: int


def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping]) -> Tensor:
    """Training reward in [0, 1], float32 [R]: half for a strict match, half partial credit.

    Args:
        images: [R, 3, 24, 24] in [0, 1].
        prompts: R texts; not read, since the metadata says the same.
        metadata: R GenEval entries.

    Raises:
        ValueError: images of another shape, or pixels that are not finite.
    """
    readings = read(images)
    scores = [0.5 * _fulfils(seen, m) + 0.5 * _partial(seen, m) for seen, m in zip(readings, metadata, strict=True)]
    return torch.tensor(scores, dtype=torch.float32)


def strict(images: Tensor, metadata: Sequence[Mapping]) -> Tensor:
    """Strict accuracy, bool [R]: exactly the requested objects and nothing else.

    Args:
        images: [R, 3, 24, 24] in [0, 1].
        metadata: R GenEval entries.

    Raises:
        ValueError: images of another shape, or pixels that are not finite.
    """
    return torch.tensor([_fulfils(seen, m) for seen, m in zip(read(images), metadata, strict=True)], dtype=torch.bool)


@torch.no_grad()
def read(images: Tensor) -> list[Reading]:
    """Find and name the blobs of each image.

    Args:
        images: [R, 3, 24, 24] in [0, 1].

    Returns:
        One reading per image.

    Raises:
        ValueError: images of another shape, or pixels that are not finite.
    """
    shaped = images.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE)
    require(shaped, "checker.read", "images", f"[R, 3, {IMAGE_SIZE}, {IMAGE_SIZE}]", list(images.shape))
    images = images.detach().float().cpu()
    require(bool(images.isfinite().all()), "checker.read", "images", "finite", "NaN or infinity")
    foreground = _contrast(images) > FOREGROUND
    owner, blob_masks = _components(foreground)
    areas = blob_masks.sum((1, 2))
    specks = torch.zeros(len(images), dtype=torch.long).index_add_(0, owner, areas * (areas < MIN_AREA))
    owner, blob_masks = owner[areas >= MIN_AREA], blob_masks[areas >= MIN_AREA]
    blobs: list[list[Blob]] = [[] for _ in range(len(images))]
    for row, blob in zip(owner.tolist(), _describe(images[owner], blob_masks), strict=True):
        blobs[row].append(blob)
    return [Reading(tuple(found), count) for found, count in zip(blobs, specks.tolist(), strict=True)]


def _components(foreground: Tensor) -> tuple[Tensor, Tensor]:
    """4-connected components: the image that each belongs to [C], and its mask [C, H, W]."""
    rows, height, width = foreground.shape
    mask = foreground.float()
    label = mask * torch.arange(1, height * width + 1, dtype=torch.float32).view(height, width)
    while not torch.equal(spread := _spread(label) * mask, label):
        label = spread
    key = torch.arange(rows).view(-1, 1, 1) * (height * width + 1) + label.long()
    keys = key[foreground].unique()
    owner = keys // (height * width + 1)
    return owner, key[owner] == keys.view(-1, 1, 1)


def _spread(label: Tensor) -> Tensor:
    """The maximum of each pixel of [R, H, W] and its four neighbours. Pooling does the same, seven times slower."""
    spread = label.clone()
    for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        spread[:, here] = torch.maximum(spread[:, here], label[:, there])
        spread[:, :, here] = torch.maximum(spread[:, :, here], label[:, :, there])
    return spread


def _contrast(images: Tensor) -> Tensor:
    """RGB distance of every pixel from the background, [R, H, W]."""
    return (images - BACKGROUND).square().sum(dim=1).sqrt()


def _describe(images: Tensor, masks: Tensor) -> list[Blob]:
    """Name C blobs, given the image [C, 3, H, W] and the mask [C, H, W] of each."""
    if not len(masks):
        return []
    palette = torch.tensor(list(COLORS.values()))
    offset = palette - BACKGROUND
    core = masks & (_contrast(images) > CORE)
    weight = torch.where(core.any((1, 2), keepdim=True), core, masks).float()
    mean = (images * weight[:, None]).sum((2, 3)) / weight.sum((1, 2))[:, None]
    distance = torch.cdist(mean, palette)
    error, nearest = distance.min(1)
    # coverage: how far each pixel has moved from the background towards the blob's palette colour
    axis = offset[nearest]
    coverage = ((images - BACKGROUND) * axis[:, :, None, None]).sum(1) / axis.square().sum(1)[:, None, None]
    near = max_pool2d(masks[:, None].float(), 3, 1, 1)[:, 0]
    matches = _dice(coverage.clamp(0, 1) * near)
    best, kind = matches.max(1)
    margin = best - matches.topk(2, dim=1).values[:, 1]
    named = (best >= MIN_MATCH) & (margin >= MIN_MARGIN)
    kinds = [SHAPES[i] if known else None for i, known in zip(kind.tolist(), named.tolist(), strict=True)]
    close = (error <= MAX_COLOR_ERROR).tolist()
    colors = [list(COLORS)[i] if known else None for i, known in zip(nearest.tolist(), close, strict=True)]
    centers = torch.stack(_centers(masks), dim=1).tolist()
    return [
        Blob(tuple(match), kind_name, color_name, (x, y))
        for match, kind_name, color_name, (x, y) in zip(matches.tolist(), kinds, colors, centers, strict=True)
    ]


def _dice(coverage: Tensor) -> Tensor:
    """Dice overlap 2<c, t> / (|c|^2 + |t|^2) of coverage [C, H, W] with each template at its best position: [C, 4]."""
    masks = templates()
    overlap = conv2d(coverage[:, None], masks[:, None], padding=SHAPE_SIZE // 2).amax((2, 3))
    return 2 * overlap / (coverage.square().sum((1, 2))[:, None] + masks.square().sum((1, 2)))


def _centers(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the bounding boxes of masks [C, H, W]."""
    axis = torch.arange(IMAGE_SIZE)
    middle = []
    for dim in (1, 2):  # reducing over rows finds columns, and vice versa
        filled = masks.any(dim)
        first = torch.where(filled, axis, IMAGE_SIZE).amin(1)
        last = torch.where(filled, axis, -1).amax(1)
        middle.append((first + last + 1) / 2)
    return middle[0], middle[1]


def _fulfils(seen: Reading, metadata: Mapping) -> bool:
    """Whether the image shows exactly what the metadata asks for."""
    include = metadata["include"]
    wanted = sum(entry["count"] for entry in include)
    if len(seen.blobs) != wanted or seen.speck_pixels >= MAX_SPECKS:
        return False
    if any(sum(blob.is_a(entry) for blob in seen.blobs) != entry["count"] for entry in include):
        return False
    return all(_related(seen.blobs, entry, include) for entry in include if "position" in entry)


def _partial(seen: Reading, metadata: Mapping) -> float:
    """Credit of the best assignment of blobs to objects, divided by the number of objects or of blobs, if larger."""
    include = metadata["include"]
    wanted = [entry for entry in include for _ in range(entry["count"])]
    table = [[blob.credit(entry) for blob in seen.blobs] for entry in wanted]
    credit = _assign(table) / max(len(wanted), len(seen.blobs))
    related = all(_related(seen.blobs, entry, include) for entry in include if "position" in entry)
    return credit if related else 0.5 * credit


def _assign(table: list[list[float]]) -> float:
    """Largest total credit when each object takes one blob: exhaustive for two objects, greedy for identical ones."""
    if not table or not table[0]:
        return 0.0
    if len(table) == 2 and len(table[0]) >= 2:
        return max(table[0][i] + table[1][j] for i, j in permutations(range(len(table[0])), 2))
    return sum(sorted(table[0], reverse=True)[: len(table)])


def _related(blobs: Sequence[Blob], entry: Mapping, include: Sequence[Mapping]) -> bool:
    """Whether some blob of the entry has the requested relation to some blob of its anchor."""
    relation, anchor = entry["position"]
    return any(
        relation in _relations(blob.center, other.center)
        for blob in blobs
        if blob.is_a(entry)
        for other in blobs
        if other is not blob and other.is_a(include[anchor])
    )


def _relations(center: tuple[float, float], anchor: tuple[float, float]) -> set[str]:
    """GenEval's relations of a box to an anchor box."""
    offset = [c - a for c, a in zip(center, anchor, strict=True)]
    return geneval.relations(offset, (2 * SHAPE_SIZE, 2 * SHAPE_SIZE))
