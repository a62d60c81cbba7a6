"""Settings for a model that no recipe names: those of the nearest recipe of its family, made fit for one's own model.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..files import read_json
from ..hub import INDEX, check_source, model_file
from .recipes import get_recipe
from .run import TrainConfig
from .usages import USAGES, Usage

ONE_GPU = {
    **{"prompts_per_iteration": 4, "micro_batch": 2, "max_batch": 8, "gradient_checkpointing": True},
    **{"offload_text_encoders": True},
}
"""Settings for one GPU and images of the model's own size, where the recipes have many and often smaller ones."""
ADAPTER = {"precision": "bf16", "lora_rank": 32, "lora_alpha": 64.0}
"""Where there is no recipe."""


def usage_of(model: str) -> Usage:
    """Returns how a model is used; one of a class without a row gets diffusers' usual 28 steps and no guidance.

    Args:
        model: a directory in diffusers' layout, or a name on the hub.

    Raises:
        ValueError: if its model_index.json cannot be read.
    """
    check_source("load_policy", model)
    pipeline = str(_entries(model, INDEX).get("_class_name"))
    entries = cache(lambda file: _entries(model, file))
    for row in USAGES:
        marks = [(file, *mark) for file, own in row.marks.items() for mark in own.items()]
        if row.pipeline == pipeline and all(entries(file).get(name) == value for file, name, value in marks):
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
    settings = {**ONE_GPU, **usage.calls, **own, **steps, "guidance_scale": usage.guidance_scale, "model": model}
    return usage.recipe, base.with_settings(**settings)


def _entries(model: str, file: str) -> dict[str, Any]:
    path = model_file("load_policy", model, file)
    found = read_json(path) if path.is_file() or not Path(model).is_dir() else {}
    return found if isinstance(found, dict) else {}
