"""Files of adapters, in the layout of diffusers' `load_lora_weights`: applied as a whole, or refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import fail, require
from ..files import written_aside
from ..weight_files import opened_safetensors
from .lora import ADAPTER, INITS, Size, attach, check_adapter_alone, check_plain, has_adapter

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

WEIGHTS = "pytorch_lora_weights.safetensors"
"""Name of the file in diffusers' layout."""
PREFIX = "transformer."
"""Prefix of the tensors in that file."""
SETTINGS = "lora_adapter_metadata"
"""Where the file's header keeps the adapter's settings, as JSON."""
APPLIED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules")
"""The settings of peft's LoraConfig that decide what a stored adapter computes, and that are followed."""
WITHOUT_EFFECT = (
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
)
"""Those that do not, once the layers and their weights are known."""


def save_lora(pipeline: DiffusionPipeline, directory: str | Path) -> None:
    """Writes the adapter of the pipeline's transformer.

    Args:
        pipeline: whose transformer has the adapter.
        directory: where to write the file.

    Raises:
        ValueError: if there is no adapter, or other weights are trained as well: `save` of the policy writes all.
    """
    from peft import get_peft_model_state_dict

    found = has_adapter(pipeline.transformer)
    require(found, "save_lora", "policy", "one with an adapter", "one without: call add_lora first")
    check_adapter_alone("save_lora", pipeline.transformer)
    (name, config), *others = pipeline.transformer.peft_config.items()  # diffusers' loader gives it another name
    require(not others, "save_lora", "policy", "one with one adapter", f"one with {len(others) + 1}")
    layers = get_peft_model_state_dict(pipeline.transformer, adapter_name=name)
    settings = {name: getattr(config, name) for name in APPLIED} | {"target_modules": _adapted(layers)}
    # Without rank and alpha, a reader takes the rank as alpha. Other versions of peft may not know all settings.
    told = {f"{PREFIX}{name}": value for name, value in settings.items() if value or name in ("r", "lora_alpha")}
    # Not by `save_lora_weights`, which the pipelines that load no adapters do not have.
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in layers.items()}
    with written_aside(Path(directory) / WEIGHTS) as file:
        save_file(tensors, file, {"format": "pt", SETTINGS: json.dumps(told, indent=2, sort_keys=True)})


def load_lora(network: ModelMixin, path: str | Path) -> None:
    """Adds the adapter of a file that `save_lora` or diffusers wrote, with the same bits.

    Args:
        network: must have no adapter yet.
        path: the file, or its directory.

    Raises:
        ValueError: before anything is changed, if there is no such file, or anything in it does not fit or would not
            be applied.
    """
    from peft import set_peft_model_state_dict

    check_plain("load_lora", network)
    file = _found(Path(path))
    with opened_safetensors("load_lora", "path", file) as opened:
        stored, header = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    state = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items() if name.startswith(PREFIX)}
    if others := sorted(name for name in stored if not name.startswith(PREFIX)):
        expected = "a file in diffusers' layout that adapts the transformer alone"
        fail("load_lora", "path", expected, f"{str(file)!r} with {others[0]}")
    ranks = _fitting_ranks(network, state, file)
    settings = _settings(header, file)
    _check_targets(network, ranks, settings.get("target_modules"), file)
    attach(network, _sizes(ranks, settings, file), rslora=bool(settings.get("use_rslora")))
    set_peft_model_state_dict(network, state, ADAPTER)


def _found(path: Path) -> Path:
    """The file that a path means."""
    file = path / WEIGHTS if path.is_dir() else path
    expected = f"a directory with {WEIGHTS}, or such a file"
    require(file.is_file(), "load_lora", "path", expected, repr(str(path)))
    return file


def _fitting_ranks(network: ModelMixin, state: Mapping[str, Tensor], file: Path) -> dict[str, int]:
    """Layer -> rank of its adapter, where every pair of matrices fits a linear layer of the network."""
    layers, named = dict(network.named_modules()), repr(str(file))
    ranks = {name: _rank(state.get(f"{name}.lora_A.weight")) for name in _adapted(state)}
    require(bool(ranks), "load_lora", "path", "a file with a LoRA in diffusers' layout", f"{named} without any tensor")
    expected: dict[str, tuple[int, int]] = {}
    for name, rank in ranks.items():
        layer = layers.get(name)
        if isinstance(layer, nn.Linear):
            expected[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            expected[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    if wrong := sorted(name for name in state if expected.get(name) != tuple(state[name].shape)):
        shape = list(state[wrong[0]].shape)
        fail("load_lora", "path", "a file that fits the network's layers", f"{named} with {wrong[0]} {shape}")
    if missing := sorted(expected.keys() - state.keys()):
        fail("load_lora", "path", "a file with both matrices of each layer", f"{named} without {missing[0]}")
    for name, tensor in state.items():
        usable = tensor.is_floating_point() and bool(tensor.float().isfinite().all())
        require(usable, "load_lora", "path", "a file of finite numbers", f"{named} with {name} in {tensor.dtype}")
    return ranks


def _rank(matrix: Tensor | None) -> int:
    return 0 if matrix is None or matrix.dim() == 0 else len(matrix)


def _sizes(ranks: Mapping[str, int], settings: Mapping[str, Any], file: Path) -> dict[str, Size]:
    """Layer -> size; without settings the rank is alpha, diffusers' own convention."""
    named, sizes = repr(str(file)), {}
    for name, rank in ranks.items():
        stored = _of_layer(settings, "rank_pattern", name, settings.get("r", rank))
        require(stored == rank, "load_lora", "path", f"a file with rank {stored} at {name}", f"{named} with {rank}")
        alpha = _of_layer(settings, "alpha_pattern", name, settings.get("lora_alpha", rank))
        fits = isinstance(alpha, (int, float)) and alpha > 0
        require(fits, "load_lora", "path", f"a file with a positive alpha at {name}", f"{named} with {alpha!r}")
        sizes[name] = Size(rank, alpha)
    return sizes


def _check_targets(network: nn.Module, ranks: Mapping[str, int], targets: object, file: Path) -> None:
    """Refuses a file without weights for layers that it says it adapts."""
    if not isinstance(targets, list):  # one expression, or none
        return
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        meant = [name for name in linear if f".{name}".endswith(f".{target}")]
        applied = not meant or any(name in ranks for name in meant)
        require(applied, "load_lora", "path", "a file with all its layers", f"{str(file)!r} without {target}")


def _of_layer(settings: Mapping[str, Any], pattern: str, layer: str, usual: Any) -> Any:
    """A layer's own value, by peft's rule for the keys of its patterns."""
    from peft.utils.other import get_pattern_key

    values = settings.get(pattern) or {}
    try:
        return values.get(get_pattern_key(list(values), layer), usual)
    except (AttributeError, TypeError, re.error) as error:
        fail("load_lora", "path", f"a file whose {pattern} maps expressions to numbers", f"{values!r}: {error}")


def _settings(header: Mapping[str, str], file: Path) -> dict[str, Any]:
    """The adapter's settings from the file's header; empty if there are none.

    Raises:
        ValueError: naming a setting that changes what the adapter computes and is not followed here.
    """
    from peft import LoraConfig

    named = repr(str(file))
    try:
        stored = json.loads(header.get(SETTINGS, "{}"))
    except ValueError:
        stored = None
    require(isinstance(stored, dict), "load_lora", "path", f"a file with JSON settings in {SETTINGS}", named)
    settings = {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}
    usual = vars(LoraConfig())
    for name, value in settings.items():
        is_usual = not value or name in (*APPLIED, *WITHOUT_EFFECT) or value == usual.get(name)
        is_usual = is_usual or (name == "init_lora_weights" and value in INITS)
        expected = f"a file whose adapter follows rank and alpha alone, without {name}"
        require(is_usual, "load_lora", "path", expected, f"{named} with {name}={value!r}")
    return settings


def _adapted(state: Iterable[str]) -> list[str]:
    """Names of the layers that the adapter's matrices belong to."""
    return sorted({re.sub(r"\.lora_[AB]\.weight$", "", name) for name in state})
