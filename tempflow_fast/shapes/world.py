"""The world of coloured shapes: its shapes and colours, random scenes for a prompt, and their rendering.

A scene is a set of 8-pixel shapes on a grey 24-pixel square. Shapes are placed on a grid of 4 pixels with a gap between
them, so that a rendered scene has one correct description.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tempflow_fast.errors import fail

IMAGE_SIZE = 24
SHAPE_SIZE = 8
GAP = 2
POSITION_GRID = 4
SHAPES = ("circle", "square", "triangle", "cross")
COLORS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.05, 0.80, 0.15),
    "blue": (0.10, 0.25, 0.95),
    "yellow": (0.98, 0.90, 0.10),
    "purple": (0.70, 0.10, 0.90),
    "white": (1.00, 1.00, 1.00),
}
BACKGROUND = 0.5
MAX_TRIES = 1000


@dataclass(frozen=True)
class Shape:
    """One shape: its kind, its colour name, and the pixel of its top left corner."""

    kind: str
    color: str
    x: int
    y: int

    def clear_of(self, other: Shape) -> bool:
        """Whether the two bounding boxes are at least `GAP` pixels apart."""
        return max(abs(self.x - other.x), abs(self.y - other.y)) >= SHAPE_SIZE + GAP


Scene = tuple[Shape, ...]


@cache
def templates() -> Tensor:
    """Coverage of each shape's pixels, [len(SHAPES), SHAPE_SIZE, SHAPE_SIZE] in [0, 1], by 8 x 8 supersampling."""
    fine = 8 * SHAPE_SIZE
    axis = (torch.arange(fine, dtype=torch.float32) + 0.5) / fine * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = {
        "circle": x.square() + y.square() <= 1,
        "square": torch.ones_like(x, dtype=torch.bool),
        "triangle": x.abs() <= (y + 1) / 2,
        "cross": torch.minimum(x.abs(), y.abs()) <= 0.3,
    }
    masks = torch.stack([inside[kind] for kind in SHAPES]).float()
    return torch.nn.functional.avg_pool2d(masks, 8)


def render(scenes: Sequence[Scene]) -> Tensor:
    """Images of scenes, [len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE] in [0, 1]."""
    images = torch.full((len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE), BACKGROUND)
    masks = templates()
    for image, scene in zip(images, scenes, strict=True):
        for shape in scene:
            patch = image[:, shape.y : shape.y + SHAPE_SIZE, shape.x : shape.x + SHAPE_SIZE]
            color = torch.tensor(COLORS[shape.color]).view(3, 1, 1)
            patch.lerp_(color.expand_as(patch), masks[SHAPES.index(shape.kind)].expand_as(patch))
    return images


def sample_scene(metadata: Mapping, rng: random.Random) -> Scene:
    """A random scene that matches GenEval metadata and contains nothing else.

    Args:
        metadata: a prompt's entry.
        rng: chooses the places, and the colours that the prompt leaves open.

    Raises:
        ValueError: `MAX_TRIES` tries found no places for the objects.
    """
    include = metadata["include"]
    colors = rng.sample(list(COLORS), len(include))
    wanted = [
        (entry["class"], entry.get("color", color))
        for entry, color in zip(include, colors, strict=True)
        for _ in range(entry["count"])
    ]
    relation = next((entry["position"][0] for entry in include if "position" in entry), None)
    for _ in range(MAX_TRIES):
        scene = _place(wanted, rng)
        if scene and (relation is None or fulfils_relation(scene[1], scene[0], relation)):
            return scene
    expected = f"a prompt whose objects find places in {MAX_TRIES} tries"
    fail("sample_scene", "metadata", expected, repr(metadata["prompt"]))


def corners() -> list[tuple[int, int]]:
    """Every (x, y) at which the top left pixel of a shape may be."""
    along = range(0, IMAGE_SIZE - SHAPE_SIZE + 1, POSITION_GRID)
    return [(x, y) for x in along for y in along]


def _place(wanted: Sequence[tuple[str, str]], rng: random.Random) -> Scene:
    """Put each shape in turn on a random corner that is clear of the others; empty if no corner is left."""
    scene: Scene = ()
    for kind, color in wanted:
        free = [s for s in (Shape(kind, color, *corner) for corner in corners()) if all(map(s.clear_of, scene))]
        if not free:
            return ()
        scene += (rng.choice(free),)
    return scene


def fulfils_relation(shape: Shape, anchor: Shape, relation: str) -> bool:
    """Whether a shape clearly has a relation to another: apart along one axis, roughly level along the other.

    Args:
        shape: the shape that is "left of" the anchor, for example.
        anchor: the other shape.
        relation: "left of", "right of", "above" or "below".
    """
    dx, dy = shape.x - anchor.x, shape.y - anchor.y
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = abs(dy if relation in ("left of", "right of") else dx)
    return along >= SHAPE_SIZE + GAP and across <= SHAPE_SIZE // 2
