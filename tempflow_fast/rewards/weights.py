"""Published weights as tensors, from safetensors files or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import fail, require
from ..weight_files import HUB_FILE, conversion, from_hub, opened_safetensors
from .base import one_line


def read_weights(source: str, published: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file; no other kind of file is opened.

    Args:
        source: a path, or "owner/name:file.safetensors" on the hub.
        published: "owner/name:file" on the hub, from which `tempflow_fast.convert` makes the file; None: unknown.

    Returns:
        Name -> tensor, on the host.

    Raises:
        ValueError: if the source is neither an existing file nor of the hub's form, or is no safetensors file, with the
            command that makes one.
        OSError: if the hub has no such file.
    """
    path = Path(source)
    if not path.is_file():
        on_hub = HUB_FILE.fullmatch(source) is not None
        fits = on_hub and path.suffix == ".safetensors"
        expected = "an existing safetensors file, or owner/name:file.safetensors on the hub"
        origin, output = (source, f"{path.stem.rpartition(':')[2]}.safetensors") if on_hub else (published, source)
        advice = conversion(origin, output) if origin else ""
        require(fits, "read_weights", "source", expected, f"{source!r}{advice}")
        path = from_hub(source)
    with opened_safetensors("read_weights", "source", path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping


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
