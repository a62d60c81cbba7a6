"""Pictures of a run: the reward curve, the before/after sheet, the grid of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .evaluate import Evaluation
from .files import written_aside

TILE = 192
"""Small images are magnified by a whole factor to about so many pixels."""
FRAME, GAP, CAPTION, MARGIN = 4, 8, 46, 62
FONT_SIZE, LETTER_WIDTH = 14, 7.4
"""In pixels; the width is that of an average letter."""
RIGHT, WRONG, INK, PAPER = (30, 150, 60), (205, 45, 40), (30, 30, 30), (255, 255, 255)
NUM_COLUMNS = 6
SMOOTHED_OVER = 10
"""Iterations in the running mean of the reward curve."""


def training_curve(path: Path, metrics: Sequence[Mapping[str, float]]) -> None:
    """Draws the mean reward of every iteration and its running mean, a PNG."""
    from matplotlib.figure import Figure

    iterations = [row["iteration"] for row in metrics]
    rewards = [row["reward_mean"] for row in metrics]
    windows = [rewards[max(0, end - SMOOTHED_OVER) : end] for end in range(1, len(rewards) + 1)]
    smooth = [sum(window) / len(window) for window in windows]
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(iterations, rewards, color="tab:blue", alpha=0.3, linewidth=1, label="one iteration")
    axes.plot(iterations, smooth, color="tab:blue", linewidth=2, label=f"mean of the last {SMOOTHED_OVER}")
    axes.set(xlabel="iteration", ylabel="reward of the training images (mean)", title="Reward while training")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")


def sample_sheet(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Draws the first images of each evaluation under one another, prompt by prompt; the frame says right or wrong.

    Args:
        path: the PNG.
        evaluations: row name -> evaluation; all of the same prompts and noise.
    """
    names, columns = list(evaluations), list(evaluations.values())
    tiles = [[_tile(image, bool(right)) for image, right in zip(e.images, e.accuracy, strict=False)] for e in columns]
    captions = [entry["prompt"] for entry in columns[0].metadata][: len(tiles[0])]
    _save(path, _grid(tiles, captions, names))


def contact_sheet(path: Path, images: Tensor, captions: Sequence[str]) -> None:
    """Draws images [R, 3, H, W] in [0, 1] with their captions, row by row, a PNG."""
    _save(path, _grid([[_tile(image, None) for image in images]], list(captions), [""]))


def _tile(image: Tensor, right: bool | None) -> Image.Image:
    """An image [3, H, W] magnified without smoothing, in a green (right), red (wrong) or white frame."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    scale = max(1, TILE // max(image.shape[1:]))
    picture = Image.fromarray(pixels).resize((image.shape[2] * scale, image.shape[1] * scale), Image.Resampling.NEAREST)
    color = PAPER if right is None else RIGHT if right else WRONG
    framed = Image.new("RGB", (picture.width + 2 * FRAME, picture.height + 2 * FRAME), color)
    framed.paste(picture, (FRAME, FRAME))
    return framed


def _grid(rows: list[list[Image.Image]], captions: list[str], names: list[str]) -> Image.Image:
    """Tiles of equal size in blocks of `NUM_COLUMNS`: a caption per column, below it one tile of every row."""
    width, height = rows[0][0].width + GAP, rows[0][0].height + GAP
    margin = MARGIN if any(names) else GAP
    num_columns = min(NUM_COLUMNS, len(captions))
    block = CAPTION + len(rows) * height + GAP
    num_blocks = -(-len(captions) // num_columns)
    sheet = Image.new("RGB", (margin + num_columns * width, num_blocks * block), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for i, caption in enumerate(captions):
        x, top = margin + i % num_columns * width, i // num_columns * block
        draw.text((x, top + 4), "\n".join(wrap(caption, int(width / LETTER_WIDTH))[:2]), INK, font)
        for j, row in enumerate(rows):
            y = top + CAPTION + j * height
            sheet.paste(row[i], (x, y))
            if i % num_columns == 0:
                draw.text((GAP, y + height // 2 - FONT_SIZE), names[j], INK, font)
    return sheet


def _save(path: Path, picture: Image.Image) -> None:
    with written_aside(path) as aside:
        picture.save(aside, format="PNG")
