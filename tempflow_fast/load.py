"""Model name -> policy."""

from __future__ import annotations

from pathlib import Path

import torch

from .policies import SD3Policy
from .shapes import pipeline_path

EMBEDDED = "embedded"


def load_policy(model: str, device: str = "cpu") -> SD3Policy:
    """The policy of a model, in float32.

    Args:
        model: `embedded` for the packaged one, a directory in the StableDiffusion3Pipeline layout, or the name of such
            a model on the Hugging Face hub.
        device: where to put it.

    Raises:
        ValueError: if there is no such model, or it is no StableDiffusion3Pipeline.
    """
    path = pipeline_path() if model == EMBEDDED else Path(model)
    is_directory = (path / "model_index.json").is_file()
    # A hub name is owner/name; anything else that is not there must be a mistyped path, for which no network is asked.
    if not is_directory and (path.exists() or model.count("/") != 1 or model.startswith((".", "/"))):
        expected = f"{EMBEDDED!r}, a directory with a model_index.json, or a hub name"
        raise ValueError(f"load_policy: model must be {expected}, got {str(path)!r}")
    try:
        return SD3Policy.from_pretrained(path if is_directory else model, device, torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"load_policy: cannot load {model!r}: {str(error).strip().splitlines()[0]}") from error
