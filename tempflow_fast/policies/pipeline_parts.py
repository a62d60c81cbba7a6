"""Whether a pipeline's parts fit its family."""

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
    kinds = tuple(kind for kind in parts[part] if issubclass(kind, nn.Module))
    got = type(network).__name__
    expected = " or ".join(kind.__name__ for kind in kinds)
    require(isinstance(network, kinds), owner, f"pipeline.{part}", f"a {expected}", got)
    for other, component in pipeline.components.items():
        alone = other == part or not isinstance(component, kinds)
        require(alone, owner, f"pipeline.{other}", f"None: one network is trained, {part}", type(component).__name__)
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
