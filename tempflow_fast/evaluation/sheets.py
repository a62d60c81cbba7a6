"""Sheets of images: before and after, the grid of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import written_aside
from .result import Evaluation

TILE, SMALL_TILE = 192, 96
"""About how many pixels an image takes, alone or beside others."""
FRAME, GAP, CAPTION, TITLE = 4, 8, 46, 34
FONT_SIZE, LETTER_WIDTH = 14, 7.4
"""In pixels; the width is that of an average letter."""
RIGHT, WRONG, INK, PAPER = (30, 150, 60), (205, 45, 40), (30, 30, 30), (255, 255, 255)
NUM_COLUMNS = 6


def sample_sheet(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Draws the first images of each evaluation side by side, prompt by prompt; the frame says right or wrong.

    Args:
        path: the PNG.
        evaluations: name -> evaluation; all of the same prompts and noise.
    """
    shown = [list(zip(e.images, _right(e), strict=False)) for e in evaluations.values()]
    cells = [[_tile(image, right, SMALL_TILE) for image, right in images] for images in zip(*shown, strict=True)]
    captions = [entry["prompt"] for entry in next(iter(evaluations.values())).metadata][: len(cells)]
    counts = [
        name if None in [right for _, right in e] else f"{name} ({sum(bool(right) for _, right in e)} exactly right)"
        for name, e in zip(evaluations, shown, strict=True)
    ]
    _save(path, _grid(cells, captions, f"{len(cells)} prompts, each {', '.join(counts)}"))


def _right(evaluation: Evaluation) -> list[bool | None]:
    """Whether each image is exactly right; None where nobody can tell."""
    accuracy = evaluation.measures.get("accuracy")
    return [None] * len(evaluation.metadata) if accuracy is None else accuracy.bool().tolist()


def contact_sheet(path: Path, images: Tensor, captions: Sequence[str]) -> None:
    """Draws images [R, 3, H, W] in [0, 1] with their captions, row by row, a PNG."""
    _save(path, _grid([[_tile(image, None, TILE)] for image in images], captions))


def _tile(image: Tensor, right: bool | None, size: int) -> Image.Image:
    """An image [3, H, W] of about `size` pixels, in a green (right), red (wrong) or white frame."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    if max(picture.size) <= size:
        # By a whole factor and without smoothing, so that every pixel of a small image is seen as it is.
        picture = picture.resize(
            [side * (size // max(picture.size)) for side in picture.size], Image.Resampling.NEAREST
        )
    else:
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    color = PAPER if right is None else RIGHT if right else WRONG
    framed = Image.new("RGB", (picture.width + 2 * FRAME, picture.height + 2 * FRAME), color)
    framed.paste(picture, (FRAME, FRAME))
    return framed


def _grid(cells: list[list[Image.Image]], captions: Sequence[str], title: str = "") -> Image.Image:
    """Cells of equal size, `NUM_COLUMNS` to a row: a caption, below it the cell's tiles beside one another."""
    tile = cells[0][0]
    width, height = len(cells[0]) * (tile.width + FRAME) + GAP, CAPTION + tile.height + GAP
    num_columns = min(NUM_COLUMNS, len(cells))
    top = TITLE if title else 0
    sheet = Image.new("RGB", (GAP + num_columns * width, top + -(-len(cells) // num_columns) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    draw.text((GAP, GAP), title, INK, font)
    for i, (tiles, caption) in enumerate(zip(cells, captions, strict=True)):
        x, y = GAP + i % num_columns * width, top + i // num_columns * height
        draw.text((x, y + 4), "\n".join(wrap(caption, int(width / LETTER_WIDTH))[:2]), INK, font)
        for j, picture in enumerate(tiles):
            sheet.paste(picture, (x + j * (tile.width + FRAME), y + CAPTION))
    return sheet


def _save(path: Path, picture: Image.Image) -> None:
    with written_aside(path) as aside:
        picture.save(aside, format="PNG")
