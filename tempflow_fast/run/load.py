"""Model name -> policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..choices import EMBEDDED_MODEL
from ..ops.checks import usable_device
from ..policies import POLICIES, DiffusersPolicy
from ..quiet import quiet
from ..shapes import pipeline_path


def load_policy(
    model: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    resolution: int | tuple[int, int] | None = None,
    max_text_length: int | None = None,
) -> DiffusersPolicy:
    """The policy of a model; its class is that of `POLICIES` for the pipeline class that the model names.

    Args:
        model: `embedded` for the packaged one, a directory in the layout of a diffusers pipeline, or the name of such a
            model on the Hugging Face hub.
        device: where to put it.
        dtype: precision of the network.
        resolution: side of square images in pixels, or (height, width); None: the pipeline's default.
        max_text_length: number of tokens that a prompt is cut at; None: what the class has.

    Raises:
        ValueError: if there is no such model, it is of no registered class, or a setting does not fit it.
    """
    device = usable_device("load_policy", device)
    path = pipeline_path() if model == EMBEDDED_MODEL else Path(model)
    is_directory = (path / "model_index.json").is_file()
    # A hub name is owner/name; anything else that is not there must be a mistyped path, for which no network is asked.
    if not is_directory and (path.exists() or model.count("/") != 1 or model.startswith((".", "/"))):
        expected = f"{EMBEDDED_MODEL!r}, a directory with a model_index.json, or a hub name"
        raise ValueError(f"load_policy: model must be {expected}, got {str(path)!r}")
    source = str(path) if is_directory else model
    try:
        name = _pipeline_name(source)
    except (OSError, ValueError) as error:
        raise _unloadable(model, error) from error
    if name not in POLICIES:
        raise ValueError(f"load_policy: model must be one of {', '.join(sorted(POLICIES))}, got a {name}")
    try:
        return POLICIES[name].from_pretrained(source, device, dtype, resolution, max_text_length)
    except (OSError, ValueError) as error:
        raise _unloadable(model, error) from error


@quiet("diffusers", "transformers")
def _pipeline_name(source: str) -> Any:
    """The pipeline class that a model's model_index.json names."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.load_config(source).get("_class_name")


def _unloadable(model: str, error: Exception) -> ValueError:
    return ValueError(f"load_policy: cannot load {model!r}: {str(error).strip().splitlines()[0]}")
