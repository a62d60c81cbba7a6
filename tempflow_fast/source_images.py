"""The images that a prompt is about: its entry `image`, a path or a list of paths."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import fail, require

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE = "image"
"""The field of an entry."""
WIDE = ("I", "F")
"""How the names of Pillow's modes with more than 8 bits a channel begin."""
KEPT = 64
"""The number of decoded images that `pixels` keeps."""

Sources = tuple[Any, ...]
"""The source images of one prompt: paths, or uint8 tensors [3, H, W] as a reward server gets them."""


def sources_of(entry: Mapping[str, Any]) -> Sources:
    """The source images of a prompt.

    Args:
        entry: its metadata.

    Raises:
        ValueError: if `image` is neither a path nor a list of paths.
    """
    found = entry.get(IMAGE)
    if not isinstance(found, (list, tuple)):
        found = () if found in (None, "") else (found,)
    for source in found:
        if not isinstance(source, Tensor) and not (isinstance(source, (str, Path)) and str(source)):
            fail("sources_of", IMAGE, "a path or a list of paths", f"{source!r}"[:200])
    return tuple(found)


def check_file(function: str, argument: str, path: Path) -> None:
    """Refuses what is no image file. Its pixels are not read.

    Args:
        function: the caller, for the error.
        argument: what names the file, for the error.
        path: of the file.

    Raises:
        ValueError: if there is no such file, or it is none of an image, or of one with more than 8 bits a channel.
    """
    _opened(function, argument, path, whole=False)


def picture(path: str | Path) -> Image:
    """An image file in RGB, the right way up.

    Args:
        path: of the file.

    Raises:
        ValueError: if there is no such file, it cannot be read to its end, or has more than 8 bits a channel.
    """
    from PIL import ImageOps

    return ImageOps.exif_transpose(_opened("picture", IMAGE, Path(path), whole=True)).convert("RGB")


def pixels(source: str | Path | Tensor) -> Tensor:
    """A source image as uint8 [3, H, W] on the host, which is not to be written to.

    Args:
        source: one of `sources_of`.

    Raises:
        ValueError: if the file cannot be read.
    """
    return source if isinstance(source, Tensor) else _pixels(str(source), stamp(source))


def stamp(source: str | Path) -> tuple[int, int]:
    """What changes with the content of a file: its size in bytes, and when it was written.

    Args:
        source: path of the file.

    Raises:
        ValueError: if there is no such file.
    """
    try:
        facts = Path(source).stat()
    except OSError as error:
        fail("stamp", IMAGE, "an existing file", f"{str(source)!r}: {error.strerror}")
    return facts.st_size, facts.st_mtime_ns


@lru_cache(maxsize=KEPT)
def _pixels(path: str, stamp: tuple[int, int]) -> Tensor:
    """The pixels of a file; it is read again if it changes: `stamp` is only part of the key."""
    import numpy

    return torch.from_numpy(numpy.array(picture(path))).permute(2, 0, 1).contiguous()


def _opened(function: str, argument: str, path: Path, whole: bool) -> Image:
    import PIL.Image

    try:
        image = PIL.Image.open(path)
        if whole:
            image.load()
    except FileNotFoundError:
        fail(function, argument, "an existing file", repr(str(path)))
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        fail(function, argument, "an image file", f"{str(path)!r}: {error}")
    # Pillow would cut what is above 255 off instead of scaling it.
    fits, got = not image.mode.startswith(WIDE), f"{str(path)!r} of mode {image.mode}"
    require(fits, function, argument, "an image of 8 bits a channel", got)
    return image
