"""Model name -> policy."""

from __future__ import annotations

from pathlib import Path

import torch

from ..choices import EMBEDDED_MODEL
from ..errors import fail, require
from ..ops.checks import usable_device
from ..policies import POLICIES, DiffusersPolicy
from ..policies.model_files import read_index
from ..shapes import pipeline_path


def load_policy(
    model: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    resolution: int | tuple[int, int] | None = None,
    max_text_length: int | None = None,
    allow_code: bool = False,
) -> DiffusersPolicy:
    """Loads a model by name. Its policy class is the entry of `POLICIES` for the pipeline class in model_index.json.

    Args:
        model: `embedded` for the packaged model, a directory in the layout of a diffusers pipeline, or the name of such
            a model on the Hugging Face hub.
        device: the device of the model.
        dtype: precision of the network. Weights to be trained get it, too, unlike in `tempflow-fast train`; an adapter
            is always float32.
        resolution: side of square images in pixels, or (height, width); None: the pipeline's default.
        max_text_length: maximum number of tokens of a prompt; None: the default of the policy class.
        allow_code: whether the model's parts may be code from its directory or from other libraries.

    Returns:
        The policy.

    Raises:
        ValueError: if the model cannot be loaded, its pipeline class is not in `POLICIES`, or a setting does not fit.
    """
    device = usable_device("load_policy", device)
    source, kind = find_model(model)
    return kind.from_pretrained(source, device, dtype, resolution, max_text_length, allow_code)


def find_model(model: str | Path) -> tuple[str, type[DiffusersPolicy]]:
    """Finds a model by name, without loading more of it than its index.

    Args:
        model: as in `load_policy`.

    Returns:
        Where diffusers finds it, and the class of its policy.

    Raises:
        ValueError: if there is no such model, or its pipeline class is not in `POLICIES`.
    """
    require(isinstance(model, (str, Path)), "load_policy", "model", "a name or a path", repr(model))
    model = str(model)
    path = pipeline_path() if model == EMBEDDED_MODEL else Path(model)
    is_directory = (path / "model_index.json").is_file()
    # A hub name is owner/name; anything else that does not exist must be a mistyped path, so the hub is not asked.
    if not is_directory and (path.exists() or model.count("/") != 1 or model.startswith((".", "/"))):
        expected = f"{EMBEDDED_MODEL!r}, a directory with a model_index.json, or a hub name"
        fail("load_policy", "model", expected, repr(str(path)))
    source = str(path) if is_directory else model
    name = read_index("load_policy", source)["_class_name"]
    require(name in POLICIES, "load_policy", "model", f"one of {', '.join(sorted(POLICIES))}", f"a {name}")
    return source, POLICIES[name]
