"""Small random pipelines of every family, built from the libraries' own classes. Nothing is downloaded.

`text_to_image`, `editing` and `video` have one function per family, which takes a directory for the tokenizer's files;
`parts` has what they share. `ALL` names those that the tests of families go through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from support import pipelines
from support.families import editing, text_to_image, video
from support.families.parts import without_zeros
from tempflow_fast.policies import POLICIES
from tempflow_fast.policies.classes import policy_class


@dataclass(frozen=True)
class Tiny:
    """A tiny pipeline."""

    build: Callable[[Path], Any]
    text_length: int | None = None
    """Tokens at which its prompts are cut; None: the family's own number."""
    loader: str | None = "pipeline"
    """The part of diffusers that loads adapters for it, the pipeline or the transformer; None: neither."""
    is_captured: bool = True
    """Whether its network can run as a CUDA graph, for texts of one length."""
    num_frames: int | None = None
    """Of its videos."""
    has_large_sources: bool = False
    """Whether its pipeline enlarges source images to about a million pixels: an emulated capture takes minutes then."""


FAMILIES = {
    "sd3": Tiny(pipelines.sd3_pipeline, 9),
    "flux": Tiny(pipelines.flux_pipeline, 9),
    # The marks of the chat around a prompt take 129 tokens.
    "qwen_image": Tiny(pipelines.qwen_image_pipeline, 150),
    "aura_flow": Tiny(text_to_image.aura_flow, 9),
    "chroma": Tiny(text_to_image.chroma, 9, is_captured=False),
    "ovis_image": Tiny(text_to_image.ovis_image, loader="transformer"),
    "cogview4": Tiny(text_to_image.cogview4),
    "lumina2": Tiny(text_to_image.lumina2, is_captured=False),
    "wan": Tiny(video.wan, 9, num_frames=9),
}
MORE = {
    "z_image": Tiny(text_to_image.z_image),
    "krea2": Tiny(text_to_image.krea2),
    "flux2": Tiny(text_to_image.flux2),
    "flux2_klein": Tiny(text_to_image.flux2_klein),
    "ernie_image": Tiny(text_to_image.ernie_image),
    "nucleusmoe_image": Tiny(text_to_image.nucleusmoe_image, loader="transformer", is_captured=False),
    "longcat_image": Tiny(text_to_image.longcat_image, loader="transformer"),
    "bria": Tiny(text_to_image.bria, loader="transformer"),
    "bria_fibo": Tiny(text_to_image.bria_fibo),
    "prx": Tiny(text_to_image.prx, loader=None),
    "sana": Tiny(text_to_image.sana),
    "kandinsky5": Tiny(text_to_image.kandinsky5),
    "ltx": Tiny(video.ltx, 9, num_frames=9),
}
"""Families whose tests are slow."""
FROM_TEXT = FAMILIES | MORE
FROM_IMAGES = {
    "flux_kontext": Tiny(editing.flux_kontext, 9, has_large_sources=True),
    "flux_kontext_cfg": Tiny(partial(editing.flux_kontext, guidance_embeds=False), 9, has_large_sources=True),
    "qwen_image_edit": Tiny(editing.qwen_image_edit, 300, has_large_sources=True),
    "qwen_image_edit_plus": Tiny(partial(editing.qwen_image_edit, plus=True), 300, has_large_sources=True),
    "wan_image_to_video": Tiny(video.wan_image_to_video, num_frames=9),
}
"""Families whose prompts have source images; slow as well."""
ALL = FROM_TEXT | FROM_IMAGES
"""Families whose prompts may have source images."""


def tiny_policy(name: str, directory: Path, resolution: int | tuple[int, int] | None = 32, **changed: Any) -> Any:
    """The policy on a tiny pipeline.

    Args:
        name: of `ALL`.
        directory: for the tokenizer's files.
        resolution: of its images; None: the pipeline's default.
        changed: fields of its family's row.
    """
    torch.manual_seed(0)
    tiny = ALL[name]
    pipeline = pipelines.silent(tiny.build(directory))
    kind = POLICIES[type(pipeline).__name__]
    without_zeros(pipeline.transformer)
    if changed:
        kind = policy_class(replace(kind.family, **changed))
    return kind(pipeline, resolution, tiny.text_length, tiny.num_frames)


def illustrated(name: str, directory: Path, **changed: Any) -> Any:
    """A `tiny_policy` that encodes a source image with every prompt, if it needs one.

    Args:
        name: as for `tiny_policy`.
        directory: for the tokenizer's files and the image.
        **changed: as for `tiny_policy`.
    """
    policy = tiny_policy(name, directory, **changed)
    if policy.num_images[0]:
        own, source = policy.encode, editing.painted(directory, "source")
        policy.encode = lambda prompts, guided=False, images=None: own(
            prompts, guided, images or [(source,)] * len(prompts)
        )
    return policy


def each_family(**fields: Any) -> Any:
    """A test for every family that has these fields; slow for all but those of `FAMILIES`."""
    import pytest

    fitting = [name for name, tiny in ALL.items() if all(getattr(tiny, key) == fields[key] for key in fields)]
    marks = {name: [pytest.mark.slow] for name in ALL.keys() - FAMILIES.keys()}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks.get(name, [])) for name in fitting])
