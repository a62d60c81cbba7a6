"""Model name -> policy."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import extensions
from ..choices import EMBEDDED_MODEL
from ..errors import fail, require
from ..extensions import find_code, installed
from ..hub import check_source
from ..ops.checks import usable_device
from ..policies import POLICIES, DiffusersPolicy
from ..policies.classes import unlisted_class
from ..policies.families import UNSUPPORTED
from ..policies.model_files import read_index
from ..policies.proof import admit
from ..shapes import pipeline_path


def load_policy(
    model: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    resolution: int | tuple[int, int] | None = None,
    max_text_length: int | None = None,
    allow_code: bool = False,
    policy: str | None = None,
    prove_unlisted: bool = True,
    num_frames: int | None = None,
    frame_rate: int | None = None,
) -> DiffusersPolicy:
    """Loads a model by name.

    Its policy class is the entry of `POLICIES` for the pipeline class in model_index.json, or that of an installed
    package under this name, by an entry point of the group tempflow_fast.policies. Another pipeline class is tried: its
    policy has to give the pipeline's own latents and pixels in a few steps.

    Args:
        model: `embedded` for the packaged model, a directory in the layout of a diffusers pipeline, or the name of such
            a model on the Hugging Face hub.
        device: the device of the model.
        dtype: precision of the network. Weights to be trained get it, too, unlike in `tempflow-fast train`; an adapter
            is always float32.
        resolution: side of square images in pixels, or (height, width); None: the pipeline's default.
        max_text_length: maximum number of tokens of a prompt; None: the default of the policy class.
        allow_code: whether the model's parts may be code from its directory or from other libraries.
        policy: another class of policy, "module:Class" or a name as above; None: by the pipeline class.
        prove_unlisted: whether a pipeline class without a policy is tried.
        num_frames: of a video, where the model makes videos; None: the pipeline's default.
        frame_rate: frames per second, where the model is told; None: the pipeline's default.

    Returns:
        The policy.

    Raises:
        ValueError: if the model cannot be loaded, a setting does not fit, or a pipeline class without a policy is not
            reproduced, naming what differs.
    """
    device = usable_device("load_policy", device)
    source, kind = find_model(model, policy)
    video = {"num_frames": num_frames, "frame_rate": frame_rate}
    loaded = kind.from_pretrained(source, device, dtype, resolution, max_text_length, allow_code, **video)
    if prove_unlisted and not kind.listed:
        admit(loaded)
    return loaded


def find_model(model: str | Path, policy: str | None = None) -> tuple[str, type[DiffusersPolicy]]:
    """Finds a model by name, without loading more of it than its index.

    Args:
        model: as in `load_policy`.
        policy: as in `load_policy`.

    Returns:
        Where diffusers finds it, and the class of its policy.

    Raises:
        ValueError: if there is no such model, or no policy for its pipeline class.
    """
    import diffusers

    source = find_source(model)
    name = read_index("load_policy", source)["_class_name"]
    known = {*POLICIES, *installed(extensions.POLICIES)}
    if policy is None and name not in known:
        if name in UNSUPPORTED:
            fail("load_policy", "model", "one whose pipeline a policy can follow", f"a {name}: {UNSUPPORTED[name]}")
        if hasattr(diffusers, name):
            return source, unlisted_class(name)
        expected = f"one of {', '.join(sorted(known))}, or given with a policy, such as module:Class"
        fail("load_policy", "model", expected, f"a {name}")
    form = '"module:Class"'
    found = find_code("load_policy", "policy", policy or name, POLICIES, extensions.POLICIES, form)
    fits = isinstance(found, type) and issubclass(found, DiffusersPolicy)
    require(fits, "load_policy", "policy", "a class with the base DiffusersPolicy", f"{policy or name!r}")
    return source, found


def find_source(model: str | Path) -> str:
    """Returns where diffusers finds a model: a directory, or owner/name on the hub, which is not asked.

    Args:
        model: as in `load_policy`.

    Raises:
        ValueError: if it can be neither.
    """
    require(isinstance(model, (str, Path)), "load_policy", "model", "a name or a path", repr(model))
    source = str(pipeline_path() if model == EMBEDDED_MODEL else model)
    check_source("load_policy", source)
    return source
