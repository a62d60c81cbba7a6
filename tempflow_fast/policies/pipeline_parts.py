"""Whether a pipeline's parts fit its family."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..errors import require
from .families import Family
from .schedule import check_scheduler

CALLED_WITH = ("prompt", "height", "width", "num_inference_steps", "generator", "output_type")
"""The arguments of `__call__` that every pipeline gets."""


def check_parts(owner: str, pipeline: Any, family: Family) -> None:
    """Refuses another family's pipeline, network or settings, and a scheduler of another rule.

    Args:
        owner: whose error it is.
        pipeline: of diffusers.
        family: its row.

    Raises:
        ValueError: naming the part or the setting.
    """
    name, part = family.name, family.network
    own, got = family.pipeline_class, type(pipeline).__name__
    require(isinstance(pipeline, own), owner, "pipeline", f"a {name}", got)
    _check_call(owner, own, family)
    parts = own._get_signature_types()
    known = {part, "scheduler", "vae"} <= parts.keys()
    require(known, owner, "pipeline", f"one with a {part}, a scheduler and a vae", name)
    network = getattr(pipeline, part)
    declared = tuple(kind for kind in parts[part] if issubclass(kind, nn.Module))
    kinds = declared or (type(network),)  # a class of one's own may declare no types
    got = type(network).__name__
    expected = " or ".join(kind.__name__ for kind in kinds)
    require(isinstance(network, kinds), owner, f"pipeline.{part}", f"a {expected}", got)
    for other, component in pipeline.components.items():
        alone = other == part or not isinstance(component, kinds)
        require(alone, owner, f"pipeline.{other}", f"None: one network is trained, {part}", type(component).__name__)
    for setting, value in family.settings.items():
        got = pipeline.config.get(setting)
        require(got == value, owner, f"pipeline.config.{setting}", repr(value), got)
    check_scheduler(owner, pipeline.scheduler)


def _check_call(owner: str, pipeline_class: Any, family: Family) -> None:
    """Refuses a class of one's own whose `__call__` cannot be given what every pipeline gets."""
    known = inspect.signature(pipeline_class.__call__).parameters
    wanted = [*CALLED_WITH, *([] if family.guidance is None else [family.guidance])]
    missing = [name for name in wanted if name not in known]
    expected = f"one whose __call__ takes {', '.join(wanted)}"
    require(not missing, owner, "pipeline", expected, f"a {family.name} without {', '.join(missing)}")


def encoders(pipeline: Any, family: Family) -> list[nn.Module]:
    """The networks of a pipeline that are neither trained nor decode: its text encoders.

    Args:
        pipeline: of diffusers.
        family: its row.
    """
    others = (getattr(pipeline, family.network), pipeline.vae)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return [part for part in parts if all(part is not other for other in others)]
