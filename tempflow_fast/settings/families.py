"""Settings for a model that no recipe names: those of the nearest recipe of its family, made fit for one's own model.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import read_json
from ..hub import INDEX, check_source, model_file
from .recipes import get_recipe
from .run import TrainConfig

ONE_GPU = {
    **{"prompts_per_iteration": 4, "micro_batch": 2, "max_batch": 8, "gradient_checkpointing": True},
    **{"offload_text_encoders": True},
}
"""Settings for one GPU and images of the model's own size, where the recipes have many and often smaller ones."""
ADAPTER = {"precision": "bf16", "lora_rank": 32, "lora_alpha": 64.0}
"""Where there is no recipe."""


@dataclass(frozen=True)
class Usage:
    """How the models of a pipeline's class are used by those who published them."""

    pipeline: str
    """Name of the class in diffusers."""
    num_steps: int
    """Denoising steps."""
    guidance_scale: float
    """As in `GRPOConfig`."""
    recipe: str | None = None
    """The nearest recipe; None: the defaults, with an adapter in bf16."""
    marks: Mapping[str, Any] = field(default_factory=dict)
    """Entries of transformer/config.json by which a member is known; none: all of the class."""


USAGES = (
    # Model cards of SD3.5-Large and SD3.5-Medium; other models of the class: the defaults of the pipeline.
    Usage("StableDiffusion3Pipeline", 28, 3.5, "sd35l-pickscore", {"qk_norm": "rms_norm", "num_layers": 38}),
    Usage("StableDiffusion3Pipeline", 40, 4.5, "sd35m-pickscore", {"qk_norm": "rms_norm"}),
    Usage("StableDiffusion3Pipeline", 28, 7.0, "sd35m-pickscore"),
    # Model cards of FLUX.1-dev and FLUX.1-schnell, which differ in the input for guidance.
    Usage("FluxPipeline", 50, 3.5, "flux-pickscore", {"guidance_embeds": True}),
    Usage("FluxPipeline", 4, 1.0, "flux-pickscore"),
    # Model card of Qwen-Image.
    Usage("QwenImagePipeline", 50, 4.0, "qwen-image-pickscore"),
)
"""The first row that fits a model holds."""


def usage_of(model: str) -> Usage:
    """Returns how a model is used; one of a class without a row gets diffusers' usual 28 steps and no guidance.

    Args:
        model: a directory in diffusers' layout, or a name on the hub.

    Raises:
        ValueError: if its model_index.json cannot be read.
    """
    check_source("load_policy", model)
    pipeline = str(_entries(model, INDEX).get("_class_name"))
    rows = [row for row in USAGES if row.pipeline == pipeline]
    config = _entries(model, "transformer/config.json") if any(row.marks for row in rows) else {}
    for row in rows:
        if all(config.get(name) == value for name, value in row.marks.items()):
            return row
    return Usage(pipeline, 28, 1.0)


def own_settings(model: str) -> tuple[str | None, TrainConfig]:
    """Returns settings for a model of one's own.

    Only what belongs to the prompts and the machines of the recipe's authors differs from it: no accuracy, evaluation
    with the held-out prompts of the file, the model's own resolution, and iterations for one GPU.

    Args:
        model: as in `usage_of`.

    Returns:
        The name of the recipe from which they come, None for the defaults, and the settings, with `model`.

    Raises:
        ValueError: as `usage_of`.
    """
    usage = usage_of(model)
    base = TrainConfig().with_settings(**ADAPTER) if usage.recipe is None else get_recipe(usage.recipe)
    own = {"eval_prompts": None, "accuracy": None, "eval_images": None, "resolution": None, "max_text_length": None}
    steps = {"num_steps": min(base.grpo.num_steps, usage.num_steps), "eval_steps": usage.num_steps}
    settings = {**ONE_GPU, **own, **steps, "guidance_scale": usage.guidance_scale, "model": model}
    return usage.recipe, base.with_settings(**settings)


def _entries(model: str, file: str) -> dict[str, Any]:
    path = model_file("load_policy", model, file)
    found = read_json(path) if path.is_file() or not Path(model).is_dir() else {}
    return found if isinstance(found, dict) else {}
