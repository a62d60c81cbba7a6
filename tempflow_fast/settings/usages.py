"""How published models are used: steps and guidance, by the class of their pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..hub import INDEX

TRANSFORMER, SCHEDULER = "transformer/config.json", "scheduler/scheduler_config.json"
VIDEO = {"micro_batch": 1, "max_batch": 2, "decode_batch": 1}
DISTILLED = {INDEX: {"is_distilled": True}}
SD35 = {"qk_norm": "rms_norm"}


@dataclass(frozen=True)
class Usage:
    """How the models of a pipeline's class are used by those who published them."""

    pipeline: str
    """Name of the class in diffusers."""
    num_steps: int
    """Denoising steps."""
    guidance_scale: float
    """As in `GRPOConfig`: 1 is off, also for the pipelines whose own scale is 0 then."""
    recipe: str | None = None
    """The nearest recipe; None: the defaults, with an adapter in bf16."""
    marks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """File of the model -> entries by which a member is known; none: all of the class."""
    calls: Mapping[str, Any] = field(default_factory=dict)
    """Settings with fewer rows in a call on one GPU."""


USAGES = (
    # Model cards of SD3.5-Large and SD3.5-Medium.
    Usage("StableDiffusion3Pipeline", 28, 3.5, "sd35l-pickscore", {TRANSFORMER: {**SD35, "num_layers": 38}}),
    Usage("StableDiffusion3Pipeline", 40, 4.5, "sd35m-pickscore", {TRANSFORMER: SD35}),
    # Model cards of FLUX.1-dev and FLUX.1-schnell, which differ in the input for guidance.
    Usage("FluxPipeline", 50, 3.5, "flux-pickscore", {TRANSFORMER: {"guidance_embeds": True}}),
    Usage("FluxPipeline", 4, 1.0, "flux-pickscore", {TRANSFORMER: {"guidance_embeds": False}}),
    # The defaults of its pipeline, for the network that takes the scale as an input.
    Usage("FluxKontextPipeline", 28, 3.5, "flux-pickscore", {TRANSFORMER: {"guidance_embeds": True}}),
    # Model cards of FLUX.2-klein, Z-Image-Turbo and the distilled Krea 2.
    Usage("Flux2KleinPipeline", 4, 1.0, "flux2-klein-pickscore", DISTILLED),
    Usage("ZImagePipeline", 9, 1.0, "z-image-pickscore", {SCHEDULER: {"shift": 3.0}}),
    Usage("Krea2Pipeline", 8, 1.0, None, DISTILLED),
    # The defaults of the pipelines.
    Usage("StableDiffusion3Pipeline", 28, 7.0, "sd35m-pickscore"),
    Usage("QwenImagePipeline", 50, 4.0, "qwen-image-pickscore"),
    Usage("FluxKontextPipeline", 28, 1.0, "flux-pickscore"),
    Usage("QwenImageEditPipeline", 50, 4.0, "qwen-image-pickscore"),
    Usage("QwenImageEditPlusPipeline", 50, 4.0, "qwen-image-pickscore"),
    Usage("Flux2Pipeline", 50, 4.0, "flux2-pickscore"),
    Usage("Flux2KleinPipeline", 50, 4.0, "flux2-klein-pickscore"),
    Usage("ZImagePipeline", 50, 6.0, "z-image-pickscore"),
    Usage("AuraFlowPipeline", 50, 3.5),
    Usage("BriaFiboPipeline", 30, 5.0),
    Usage("BriaPipeline", 30, 5.0),
    Usage("ChromaPipeline", 35, 5.0),
    Usage("CogView4Pipeline", 50, 5.0),
    Usage("ErnieImagePipeline", 50, 4.0),
    Usage("Kandinsky5T2IPipeline", 50, 3.5),
    Usage("Krea2Pipeline", 28, 5.5),
    Usage("LongCatImagePipeline", 50, 4.5),
    Usage("LTXPipeline", 50, 3.0, calls=VIDEO),
    Usage("Lumina2Pipeline", 30, 4.0),
    Usage("NucleusMoEImagePipeline", 50, 4.0),
    Usage("OvisImagePipeline", 50, 5.0),
    Usage("PRXPipeline", 28, 4.0),
    Usage("SanaPipeline", 20, 4.5),
    Usage("WanImageToVideoPipeline", 50, 5.0, calls=VIDEO),
    Usage("WanPipeline", 50, 5.0, calls=VIDEO),
)
"""The first row that fits a model holds."""
