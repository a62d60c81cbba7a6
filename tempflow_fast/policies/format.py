"""The size of what a pipeline makes: of its images, or of its videos and their frames."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import integer, require
from .families import Family, pixels_per_latent

FRAMES_PER_LATENT = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
"""Names under which pipelines have the number of frames that one latent frame holds."""


@dataclass(frozen=True)
class Format:
    """Of what a pipeline makes."""

    height: int
    """In pixels."""
    width: int
    """In pixels."""
    num_frames: int | None = None
    """None: an image."""
    frame_rate: int | None = None
    """Frames per second, where the pipeline is told; None: its default."""

    @property
    def arguments(self) -> dict[str, int]:
        """Those of the pipeline's `__call__`."""
        video = {"num_frames": self.num_frames, "frame_rate": self.frame_rate}
        known = {name: value for name, value in video.items() if value is not None}
        return {"height": self.height, "width": self.width, **known}


def check_video(owner: str, pipeline_class: type, num_frames: int | None, frame_rate: int | None) -> None:
    """Refuses frames where a pipeline makes images, and a frame rate where it takes none. No model is needed.

    Args:
        owner: whose error it is.
        pipeline_class: of diffusers.
        num_frames: of a video; None: the pipeline's default.
        frame_rate: in frames per second; None: the pipeline's default.

    Raises:
        ValueError: naming the argument.
    """
    known = _parameters(pipeline_class)
    for name, value in (("num_frames", num_frames), ("frame_rate", frame_rate)):
        if value is not None:
            require(name in known, owner, name, f"None: a {pipeline_class.__name__} takes none", value)
            require(integer(owner, name, value) >= 1, owner, name, ">= 1", value)


def makes_videos(pipeline_class: type) -> bool:
    """Whether a pipeline makes videos. No model is needed.

    Args:
        pipeline_class: of diffusers.
    """
    return "num_frames" in _parameters(pipeline_class)


def checked_format(
    owner: str,
    pipeline: Any,
    family: Family,
    resolution: int | tuple[int, int] | None,
    num_frames: int | None = None,
    frame_rate: int | None = None,
) -> Format:
    """The format of images or videos.

    Args:
        owner: whose error it is.
        pipeline: of diffusers.
        family: its row.
        resolution: side of square images in pixels, or (height, width); None: the pipeline's default.
        num_frames: of a video; None: the pipeline's default.
        frame_rate: in frames per second; None: the pipeline's default.

    Raises:
        ValueError: if the pipeline makes nothing of this format.
    """
    check_video(owner, type(pipeline), num_frames, frame_rate)
    height, width = _checked_size(owner, pipeline, family, resolution)
    if makes_videos(type(pipeline)):
        num_frames = _parameters(type(pipeline))["num_frames"].default if num_frames is None else num_frames
        held = next((getattr(pipeline, name) for name in FRAMES_PER_LATENT if hasattr(pipeline, name)), 1)
        fits = isinstance(num_frames, int) and (num_frames - 1) % held == 0
        require(fits, owner, "num_frames", f"1 + a multiple of {held}", num_frames)
    return Format(height, width, num_frames, frame_rate)


def _checked_size(
    owner: str, pipeline: Any, family: Family, resolution: int | tuple[int, int] | None
) -> tuple[int, int]:
    side = family.pixels(pipeline)
    if resolution is None:
        resolution = default_size(pipeline, family)
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    listed = isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(pixels, int) for pixels in size)
    fits = listed and all(pixels > 0 and pixels % side == 0 for pixels in size)
    expected = f"a positive multiple of {side} pixels, or (height, width) of such multiples"
    require(fits, owner, "resolution", expected, resolution)
    longest = family.largest(pipeline)
    if longest is not None:
        require(max(size) <= longest, owner, "resolution", f"at most {longest} pixels a side", size)
    return size[0], size[1]


def default_size(pipeline: Any, family: Family) -> int | tuple[int, int]:
    """The size of images as the pipeline itself decides it.

    Args:
        pipeline: of diffusers.
        family: its row.

    Returns:
        The side of square images in pixels, or (height, width).
    """
    if family.side is not None:
        return family.side(pipeline)
    height, width = (_parameters(type(pipeline))[name].default for name in ("height", "width"))
    if isinstance(height, int) and isinstance(width, int):
        return height if height == width else (height, width)
    known = getattr(pipeline, "default_sample_size", None)
    if known is None:
        known = getattr(getattr(pipeline, family.network).config, "sample_size", None)
    return known * pixels_per_latent(pipeline) if isinstance(known, int) else 1024


def _parameters(pipeline_class: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(pipeline_class.__call__).parameters
