"""Published weights as tensors: from a file or the hub, as safetensors or as a pickle of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import fail, require
from .base import one_line


def read_weights(source: str) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        source: a path, or "owner/name:file" on the hub. Files without the suffix `.safetensors` are read as pickles
            that may hold tensors and containers, but no code.

    Returns:
        Name -> tensor, on the host.

    Raises:
        ValueError: if the source is neither an existing file nor of the hub's form.
        OSError: if the hub has no such file.
    """
    path = Path(source)
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        repository, separator, file = source.rpartition(":")
        require(bool(separator), "read_weights", "source", "an existing file or owner/name:file", repr(source))
        path = Path(hf_hub_download(repository, file))
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            fail("read_weights", "source", "a whole safetensors file", f"{str(path)!r}: {one_line(error, 120)}")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the library's many readers
        fail("read_weights", "source", "a file of tensors", f"{str(path)!r}: {one_line(error, 120)}")
    require(
        isinstance(found, Mapping), "read_weights", "source", "names with tensors", f"{type(found).__name__} in {path}"
    )
    return found.get("state_dict", found)


def loaded(network_class: Any, model: str) -> Any:
    """A network of transformers with all of its weights.

    transformers makes up the weights that a checkpoint lacks at random, and only warns.

    Args:
        network_class: with a `from_pretrained`.
        model: directory or hub name.

    Raises:
        ValueError: naming the first weights that are missing.
        OSError: if there is no such model.
    """
    network, report = network_class.from_pretrained(model, output_loading_info=True, use_safetensors=True)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("criterion."))  # of a training loss
    expected = f"one with all weights of {network_class.__name__}"
    require(not missing, "loaded", "model", expected, f"{model!r}, without {missing[:3]}")
    return network


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Loads exactly these weights.

    Args:
        module: gets the weights.
        weights: name -> tensor.
        source: where they come from, for messages.

    Raises:
        ValueError: naming the first weights that are missing, unused or of another shape.
    """
    try:
        missing, left_over = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        fail("fill", "weights", "those of the module", f"{source}: {one_line(error)}")
    got = f"{source}, without {missing[:3]} and with an unused {left_over[:3]}"
    require(not missing and not left_over, "fill", "weights", "those of the module", got)


def score_head(width: int) -> nn.Sequential:
    """Five linear layers from an embedding [R, width] to a score [R, 1], as in ImageReward and the aesthetic score.

    The numbering is theirs: what is between the layers is active only in training.

    Args:
        width: length of the embedding.
    """
    sizes = (width, 1024, 128, 64, 16, 1)
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(before, after), *([nn.Identity()] if place < 3 else [])]
    return nn.Sequential(*layers)
