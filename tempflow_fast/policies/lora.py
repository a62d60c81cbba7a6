"""Low-rank adapters through peft, in the file layout of diffusers' `load_lora_weights`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

ADAPTER = "default"
WEIGHTS = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
SETTINGS = ("r", "lora_alpha", "target_modules")
"""All that another version of peft needs to know of an adapter; it may not know the other settings of this one."""


def add_lora(network: ModelMixin, rank: int, alpha: float, targets: Sequence[str], init: str | bool, seed: int) -> None:
    """Puts an adapter beside the linear layers whose names end in one of `targets`, and freezes everything else.

    Raises:
        ValueError: for a rank or alpha that is not positive, a network that has an adapter, or targets without a layer.
    """
    from peft import LoraConfig

    if rank < 1 or not alpha > 0:
        raise ValueError(f"add_lora: rank and alpha must be positive, got {rank} and {alpha}")
    if has_adapter(network):
        raise ValueError("add_lora: network must have no adapter yet, got one that has")
    network.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=init)
    # A generator of its own: every process starts from the same adapter, and nobody else's random numbers move.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(config, ADAPTER)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def has_adapter(network: nn.Module) -> bool:
    """Whether there is an adapter of peft anywhere in `network`."""
    return bool(_adapter_layers(network))


@contextmanager
def adapters_disabled(network: nn.Module) -> Iterator[None]:
    """Inside, `network` computes without its adapters."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    layers = _adapter_layers(network)
    for layer in layers:
        layer.enable_adapters(False)
    for parameter in trained:
        # peft lets the adapter take no gradient meanwhile, which a sharded wrapper at its first call keeps for good.
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(network: ModelMixin) -> ModelMixin:
    """A network of the same class without adapter that computes as `network` does; unadapted weights are shared.

    `network` stays as it is: merging in place and back would not give its bits again.
    """
    deltas = {}
    for name, layer in network.named_modules():
        if layer in _adapter_layers(layer):
            weight = layer.get_base_layer().weight
            delta = sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)
            deltas[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in network.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if ".lora_" not in name} | deltas
    with torch.device("meta"):
        plain = type(network).from_config(network.config)
    plain.load_state_dict(state, assign=True)
    return plain


def save_lora(pipeline: DiffusionPipeline, directory: str | Path) -> None:
    """Writes the adapter of the pipeline's transformer.

    Raises:
        ValueError: if there is none.
    """
    from peft import get_peft_model_state_dict

    if not has_adapter(pipeline.transformer):
        raise ValueError("save_lora: policy must have an adapter, got none: call add_lora first")
    config = pipeline.transformer.peft_config[ADAPTER].to_dict()
    settings = {name: config[name] for name in SETTINGS} | {"target_modules": sorted(config["target_modules"])}
    pipeline.save_lora_weights(
        str(directory),
        transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer, adapter_name=ADAPTER),
        weight_name=WEIGHTS,
        transformer_lora_adapter_metadata=settings,
    )


def load_lora(network: ModelMixin, path: str | Path) -> None:
    """Adds the adapter of a file that `save_lora` or diffusers wrote; the weights arrive with their bits.

    Args:
        network: must have no adapter yet.
        path: the file, or the directory it lies in.

    Raises:
        ValueError: if there is no such file, or it does not fit the network.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"load_lora: path must be a directory with {WEIGHTS}, or such a file, got {str(path)!r}")
    state = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(file).items() if name.startswith(PREFIX)}
    settings = _settings(file) or _inferred_settings(state)
    if not state or settings is None:
        raise ValueError(f"load_lora: {str(file)!r} must hold a LoRA of a transformer in diffusers' layout, got none")
    add_lora(network, settings["r"], settings["lora_alpha"], settings["target_modules"], init=True, seed=0)
    result = set_peft_model_state_dict(network, state, ADAPTER)
    missing = [name for name in result.missing_keys if ".lora_" in name]
    if missing or result.unexpected_keys:
        got = f"{len(missing)} missing and {len(result.unexpected_keys)} unexpected tensors"
        raise ValueError(f"load_lora: {str(file)!r} must fit the network, got {got}")


def _adapter_layers(network: nn.Module) -> list[Any]:
    """peft's layers in `network`, in any wrapper."""
    if "peft" not in sys.modules:  # then nobody made one, and the import would take seconds
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def _settings(file: Path) -> dict[str, Any] | None:
    """The adapter's settings from the file's header."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        stored = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    settings = {name: stored.get(PREFIX + name) for name in SETTINGS}
    return None if None in settings.values() else settings


def _inferred_settings(state: dict[str, Tensor]) -> dict[str, Any] | None:
    """Those of a file without settings, where alpha is the rank."""
    suffix = ".lora_A.weight"
    ranks = {name.removesuffix(suffix): len(tensor) for name, tensor in state.items() if name.endswith(suffix)}
    if len(set(ranks.values())) != 1:
        return None
    rank = next(iter(ranks.values()))
    return {"r": rank, "lora_alpha": rank, "target_modules": sorted(ranks)}
