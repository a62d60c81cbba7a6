"""Sheets of images: grids of samples, and the same prompts before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import written_aside
from .result import Evaluation

TILE, SMALL_TILE = 192, 96
"""Approximate side of an image in pixels, alone or next to others."""
FRAME, GAP, CAPTION, TITLE = 4, 8, 46, 34
"""Width of frames and gaps, height of captions and the title, in pixels."""
FONT_SIZE, LETTER_WIDTH = 14, 7.4
"""In pixels; the width is the average over letters."""
RIGHT, WRONG, INK, PAPER = (30, 150, 60), (205, 45, 40), (30, 30, 30), (255, 255, 255)
NUM_COLUMNS = 6
"""Cells per row."""


def sample_sheet(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Draws the first images of each evaluation side by side, prompt by prompt; frames show which are right.

    Args:
        path: the PNG.
        evaluations: name -> evaluation; all with the same prompts and noise.
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
    """Whether each image is exactly right; None where it is not known."""
    accuracy = evaluation.measures.get("accuracy")
    return [None] * len(evaluation.metadata) if accuracy is None else accuracy.bool().tolist()


def contact_sheet(path: Path, images: Tensor, captions: Sequence[str]) -> None:
    """Draws a grid of images with captions, row by row.

    Args:
        path: the PNG.
        images: [R, 3, H, W] in [0, 1].
        captions: R texts.
    """
    _save(path, _grid([[_tile(image, None, TILE)] for image in images], captions))


def evaluation_sheet(path: Path, evaluation: Evaluation) -> None:
    """Draws the first images of an evaluation with their prompts.

    Args:
        path: the PNG.
        evaluation: the images and prompts.
    """
    prompts = [entry["prompt"] for entry in evaluation.metadata[: len(evaluation.images)]]
    contact_sheet(path, evaluation.images, prompts)


def as_picture(image: Tensor) -> Image.Image:
    """Returns an image with 8 bits per channel.

    Args:
        image: [3, H, W] in [0, 1].
    """
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _tile(image: Tensor, right: bool | None, size: int) -> Image.Image:
    """An image [3, H, W] of about `size` pixels, in a green (right), red (wrong) or white frame."""
    picture = as_picture(image)
    if max(picture.size) <= size:
        # By a whole factor and without smoothing, so that every pixel of a small image stays visible.
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
    """Cells of equal size, `NUM_COLUMNS` to a row: a caption, and below it the cell's tiles side by side."""
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
