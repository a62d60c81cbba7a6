"""Published weights as tensors: from a file or the hub, as safetensors or as a pickle of tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import one_line


def read_weights(source: str) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        source: a path, or "owner/name:file" on the hub. Other suffixes than `.safetensors` are read as pickles that
            may hold tensors and containers, but no code.

    Raises:
        OSError: if there is no such file.
    """
    path = Path(source)
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        repository, separator, file = source.rpartition(":")
        if not separator:
            raise OSError(f"weights: source must be a file or owner/name:file, got {source!r}, which is not there")
        path = Path(hf_hub_download(repository, file))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    return found.get("state_dict", found)


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Loads exactly these weights; ValueError naming the first ones that are missing, left over or of another shape."""
    try:
        missing, left_over = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"weights: {source} must fit, got {one_line(error)}") from error
    if missing or left_over:
        raise ValueError(f"weights: {source} must fit, got none for {missing[:3]} and no use for {left_over[:3]}")


def score_head(width: int) -> nn.Sequential:
    """Five linear layers from an embedding [R, width] to a score [R, 1], as ImageReward and the aesthetic score have.

    The numbering is theirs: what stands between the layers only acts in training.
    """
    sizes = (width, 1024, 128, 64, 16, 1)
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(before, after), *([nn.Identity()] if place < 3 else [])]
    return nn.Sequential(*layers)
