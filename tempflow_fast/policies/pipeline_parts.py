"""Whether a pipeline's parts and a resolution fit its family."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import require
from .families import Family
from .schedule import check_scheduler


def check_parts(owner: str, pipeline: Any, family: Family) -> None:
    """Refuses another family's pipeline or network, and a scheduler of another rule.

    Args:
        owner: whose error it is.
        pipeline: of diffusers.
        family: its row.

    Raises:
        ValueError: naming the part.
    """
    import diffusers

    name, part = family.pipeline, family.network
    own, got = getattr(diffusers, name), type(pipeline).__name__
    require(isinstance(pipeline, own), owner, "pipeline", f"a {name}", got)
    parts = own._get_signature_types()
    known = {part, "scheduler", "vae"} <= parts.keys()
    require(known, owner, "pipeline", f"one with a {part}, a scheduler and a vae", name)
    network = getattr(pipeline, part)
    kinds, got = parts[part], type(network).__name__
    expected = " or ".join(kind.__name__ for kind in kinds)
    require(isinstance(network, kinds), owner, f"pipeline.{part}", f"a {expected}", got)
    check_scheduler(owner, pipeline.scheduler)


def encoders(pipeline: Any, family: Family) -> list[nn.Module]:
    """The networks of a pipeline that are neither trained nor decode: its text encoders.

    Args:
        pipeline: of diffusers.
        family: its row.
    """
    others = (getattr(pipeline, family.network), pipeline.vae)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return [part for part in parts if all(part is not other for other in others)]


def checked_size(
    owner: str, pipeline: Any, family: Family, resolution: int | tuple[int, int] | None
) -> tuple[int, int]:
    """The size of images.

    Args:
        owner: whose error it is.
        pipeline: of diffusers.
        family: its row.
        resolution: side of square images in pixels, or (height, width); None: the pipeline's default.

    Returns:
        (height, width) in pixels.

    Raises:
        ValueError: if the pipeline does not make images of this size.
    """
    side = family.pixels(pipeline)
    if resolution is None:
        resolution = _default_side(pipeline, family)
    size = (resolution, resolution) if isinstance(resolution, int) else resolution
    listed = isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(pixels, int) for pixels in size)
    fits = listed and all(pixels > 0 and pixels % side == 0 for pixels in size)
    expected = f"a positive multiple of {side} pixels, or (height, width) of such multiples"
    require(fits, owner, "resolution", expected, resolution)
    longest = family.largest(pipeline)
    if longest is not None:
        require(max(size) <= longest, owner, "resolution", f"at most {longest} pixels a side", size)
    return size[0], size[1]


def _default_side(pipeline: Any, family: Family) -> int:
    known = getattr(pipeline, "default_sample_size", None)
    if known is None:
        known = getattr(getattr(pipeline, family.network).config, "sample_size", None)
    return int(known * pipeline.vae_scale_factor) if isinstance(known, int) else 1024
