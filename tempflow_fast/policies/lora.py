"""Low-rank adapters through peft, in the file layout of diffusers' `load_lora_weights`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
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


def add_lora(
    network: ModelMixin,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    init: str | bool,
    seed: int,
    excluded: Sequence[str] = (),
) -> None:
    """Puts an adapter beside the linear layers whose names end in one of `targets`, and freezes everything else.

    `excluded` are ends of names, too.

    Raises:
        ValueError: for a rank or alpha that is not positive, a network that has an adapter, or targets without a layer.
    """
    from peft import LoraConfig

    if rank < 1 or not alpha > 0:
        raise ValueError(f"add_lora: rank and alpha must be positive, got {rank} and {alpha}")
    _check_plain("add_lora", network)
    linear = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    if not any(f".{name}".endswith(f".{target}") for name in linear for target in targets):
        raise ValueError(f"add_lora: targets must name linear layers of the network, got {list(targets)}")
    network.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        exclude_modules=list(excluded) or None,
        init_lora_weights=init,
    )
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
    deltas, adapted = {}, set(_adapter_layers(network))
    for name, layer in network.named_modules():
        if layer in adapted:
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
    layers = get_peft_model_state_dict(pipeline.transformer, adapter_name=ADAPTER)
    config = pipeline.transformer.peft_config[ADAPTER]
    pipeline.save_lora_weights(
        str(directory),
        transformer_lora_layers=layers,
        weight_name=WEIGHTS,
        # Without these, a reader takes the rank for alpha. Another version of peft may not know further settings.
        transformer_lora_adapter_metadata={
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": _adapted(layers),
        },
    )


def load_lora(network: ModelMixin, path: str | Path) -> None:
    """Adds the adapter of a file that `save_lora` or diffusers wrote; the weights arrive with their bits.

    Args:
        network: must have no adapter yet.
        path: the file, or the directory it lies in.

    Raises:
        ValueError: before anything is changed, if there is no such file or it does not fit the network.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    _check_plain("load_lora", network)
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"load_lora: path must be a directory with {WEIGHTS}, or such a file, got {str(path)!r}")
    state = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(file).items() if name.startswith(PREFIX)}
    rank = _fitting_rank(network, state, file)
    stored = _stored_settings(file)
    alpha = stored.get(f"{PREFIX}lora_alpha", rank)  # diffusers' own convention for files without settings
    add_lora(network, rank, alpha, _adapted(state), init=True, seed=0)
    set_peft_model_state_dict(network, state, ADAPTER)


def _fitting_rank(network: ModelMixin, state: dict[str, Tensor], file: Path) -> int:
    """The rank of an adapter whose every pair of matrices stands beside a linear layer of the network."""
    layers = dict(network.named_modules())
    ranks = {len(tensor) for name, tensor in state.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        raise ValueError(f"load_lora: {str(file)!r} must hold a LoRA of one rank in diffusers' layout, got {ranks}")
    rank, expected = ranks.pop(), {}
    for name in _adapted(state):
        layer = layers.get(name)
        if isinstance(layer, nn.Linear):
            expected[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            expected[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    if wrong := sorted(name for name in state if expected.get(name) != tuple(state[name].shape)):
        raise ValueError(f"load_lora: {str(file)!r} must fit the network's layers, got {wrong[0]} among others")
    if missing := sorted(expected.keys() - state.keys()):
        raise ValueError(f"load_lora: {str(file)!r} must hold both matrices of a layer, got no {missing[0]}")
    return rank


def _check_plain(function: str, network: nn.Module) -> None:
    if has_adapter(network):
        raise ValueError(f"{function}: network must have no adapter yet, got one that has")


def _adapter_layers(network: nn.Module) -> list[Any]:
    """peft's layers in `network`, in any wrapper."""
    if "peft" not in sys.modules:  # then nobody made one, and the import would take seconds
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def _adapted(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers beside which the adapter's matrices stand."""
    return sorted({name.rpartition(".lora_")[0] for name in state})


def _stored_settings(file: Path) -> dict[str, Any]:
    """The adapter's settings from the file's header; empty if it has none."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
