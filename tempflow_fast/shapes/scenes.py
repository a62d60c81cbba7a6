"""Every scene of the world, and which of them a prompt describes.

There are only 57,984 scenes, so pretraining can take expectations over all of them (`posterior`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import combinations, permutations

import torch
from torch import Tensor

from tempflow_fast.shapes.world import COLORS, SHAPES, Scene, Shape, corners, fulfils_relation

Things = tuple[tuple[str, str], ...]
"""The (kind, color) of every shape in a scene."""


class Catalogue:
    """All scenes that at least one of the prompts describes, each once.

    Args:
        prompts: GenEval metadata.

    Attributes:
        scenes: scenes with the same contents are adjacent, so that those of a prompt are mostly one contiguous range.
    """

    def __init__(self, prompts: Iterable[Mapping]) -> None:
        self.scenes: list[Scene] = []
        self._places: dict[Things, range] = {}
        for things in dict.fromkeys(things for entry in prompts for things in _contents(entry)):
            start = len(self.scenes)
            self.scenes += _placements(things)
            self._places[things] = range(start, len(self.scenes))

    def rows(self, metadata: Mapping) -> Tensor:
        """Indices [n], ascending, of the scenes that match GenEval `metadata` and contain nothing else."""
        include = metadata["include"]
        found = sorted(row for things in _contents(metadata) for row in self._places[things])
        for entry in include:
            if "position" in entry:
                relation, anchor = entry["position"]
                kinds = entry["class"], include[anchor]["class"]
                found = [row for row in found if self._related(row, *kinds, relation)]
        return torch.tensor(found)

    def _related(self, row: int, kind: str, anchor: str, relation: str) -> bool:
        by_kind = {shape.kind: shape for shape in self.scenes[row]}
        return fulfils_relation(by_kind[kind], by_kind[anchor], relation)


def _contents(metadata: Mapping) -> Iterator[Things]:
    """The possible contents of a scene of this prompt: one colour per entry, different entries in different colours."""
    wanted = sorted(metadata["include"], key=lambda entry: SHAPES.index(entry["class"]))
    for colors in permutations(COLORS, len(wanted)):
        if all(entry.get("color") in (None, color) for entry, color in zip(wanted, colors, strict=True)):
            pairs = zip(wanted, colors, strict=True)
            yield tuple((entry["class"], color) for entry, color in pairs for _ in range(entry["count"]))


def _placements(things: Things) -> Iterator[Scene]:
    """The scenes of `things`, one per choice of free places; swapping identical things is not another scene."""
    for places in _clear_places(len(things), alike=len(set(things)) == 1):
        yield tuple(Shape(*thing, *place) for thing, place in zip(things, places, strict=True))


@cache
def _clear_places(count: int, alike: bool) -> list[tuple[tuple[int, int], ...]]:
    """Every choice of `count` places that keep the gap, without regard to order if the things are alike."""
    choose = combinations if alike else permutations
    at = {corner: Shape(SHAPES[0], next(iter(COLORS)), *corner) for corner in corners()}
    return [
        places
        for places in choose(at, count)
        if all(at[first].clear_of(at[second]) for first, second in combinations(places, 2))
    ]
