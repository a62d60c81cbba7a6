"""Small random pipelines of every family, built from the libraries' own classes. Nothing is downloaded.

`text_to_image` and `video` have one function per family, which takes a directory for the tokenizer's files; `parts` has
what they share. `FAMILIES` and `MORE` name those that the tests of families go through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import pipelines
from support.families import text_to_image, video


@dataclass(frozen=True)
class Tiny:
    """A tiny pipeline."""

    build: Callable[[Path], Any]
    text_length: int | None = None
    """Tokens at which its prompts are cut; None: the family's own number."""
    loads_adapters: bool = True
    """Whether diffusers loads adapters into it."""
    num_frames: int | None = None
    """Of its videos."""


FAMILIES = {
    "sd3": Tiny(pipelines.sd3_pipeline, 9),
    "flux": Tiny(pipelines.flux_pipeline, 9),
    # The marks of the chat around a prompt take 129 tokens.
    "qwen_image": Tiny(pipelines.qwen_image_pipeline, 150),
    "aura_flow": Tiny(text_to_image.aura_flow, 9),
    "chroma": Tiny(text_to_image.chroma, 9),
    "ovis_image": Tiny(text_to_image.ovis_image, loads_adapters=False),
    "cogview4": Tiny(text_to_image.cogview4),
    "lumina2": Tiny(text_to_image.lumina2),
    "wan": Tiny(video.wan, 9, num_frames=9),
}
MORE = {
    "z_image": Tiny(text_to_image.z_image),
    "krea2": Tiny(text_to_image.krea2),
    "flux2": Tiny(text_to_image.flux2),
    "flux2_klein": Tiny(text_to_image.flux2_klein),
    "ernie_image": Tiny(text_to_image.ernie_image),
    "nucleusmoe_image": Tiny(text_to_image.nucleusmoe_image),
    "longcat_image": Tiny(text_to_image.longcat_image),
    "bria": Tiny(text_to_image.bria),
    "prx": Tiny(text_to_image.prx),
    "sana": Tiny(text_to_image.sana),
    "kandinsky5": Tiny(text_to_image.kandinsky5),
    "ltx": Tiny(video.ltx, 9, num_frames=9),
}
"""Families whose trunk alone is tested."""
