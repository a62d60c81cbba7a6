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

from ..errors import fail, finite, integer, require

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

ADAPTER = "default"
"""peft's name for the adapter."""
WEIGHTS = "pytorch_lora_weights.safetensors"
"""Name of the file in diffusers' layout."""
PREFIX = "transformer."
"""Prefix of the tensors in that file."""


def add_lora(
    network: ModelMixin,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    init: str | bool,
    seed: int,
    excluded: Sequence[str] = (),
) -> None:
    """Adds an adapter to linear layers, and freezes everything else.

    Args:
        network: gets the adapter; it must have none yet.
        rank: inner dimension of the adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: the linear layers whose names end in one of these are adapted.
        init: peft's `init_lora_weights`.
        seed: decides the initial weights.
        excluded: layers whose names end in one of these are left out.

    Raises:
        ValueError: if the rank or alpha is not positive, the network has an adapter, or no layer matches.
    """
    from peft import LoraConfig

    require(integer("add_lora", "rank", rank) >= 1, "add_lora", "rank", "positive", rank)
    require(finite("add_lora", "alpha", alpha) > 0, "add_lora", "alpha", "positive", alpha)
    _check_plain("add_lora", network)
    linear = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    found = any(f".{name}".endswith(f".{target}") for name in linear for target in targets)
    require(found, "add_lora", "targets", "names of linear layers of the network", list(targets))
    network.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        exclude_modules=list(excluded) or None,
        init_lora_weights=init,
    )
    # A separate generator: every process starts from the same adapter, and no other random numbers change.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(config, ADAPTER)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def has_adapter(network: nn.Module) -> bool:
    """Whether peft has added an adapter anywhere in `network`.

    Args:
        network: in any wrapper.
    """
    return bool(_adapter_layers(network))


def described(network: nn.Module) -> str | None:
    """The adapter in words, such as "LoRA of rank 32, alpha 64, on 48 layers"; None if there is no adapter.

    Args:
        network: in any wrapper.
    """
    layers = [layer for layer in _adapter_layers(network) if ADAPTER in getattr(layer, "r", {})]
    if not layers:
        return None
    return f"LoRA of rank {layers[0].r[ADAPTER]}, alpha {layers[0].lora_alpha[ADAPTER]:g}, on {len(layers)} layers"


@contextmanager
def adapters_disabled(network: nn.Module) -> Iterator[None]:
    """Inside this context `network` computes without its adapters.

    Args:
        network: in any wrapper.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    layers = _adapter_layers(network)
    for layer in layers:
        layer.enable_adapters(False)
    for parameter in trained:
        # peft has frozen the disabled adapter, and a sharded wrapper would keep that from its first call on.
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(network: ModelMixin) -> ModelMixin:
    """A copy of the network with the adapter merged into its weights.

    `network` is unchanged: merging in place and unmerging would not restore its bits.

    Args:
        network: has an adapter.

    Returns:
        A network of the same class without an adapter, which computes what `network` does. It shares the weights that
        are not adapted.
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

    Args:
        pipeline: whose transformer has the adapter.
        directory: where to write the file.

    Raises:
        ValueError: if there is no adapter.
    """
    from peft import get_peft_model_state_dict

    found = has_adapter(pipeline.transformer)
    require(found, "save_lora", "policy", "one with an adapter", "one without: call add_lora first")
    layers = get_peft_model_state_dict(pipeline.transformer, adapter_name=ADAPTER)
    config = pipeline.transformer.peft_config[ADAPTER]
    pipeline.save_lora_weights(
        str(directory),
        transformer_lora_layers=layers,
        weight_name=WEIGHTS,
        # Without these, a reader takes the rank as alpha. Other versions of peft may not know further settings.
        transformer_lora_adapter_metadata={
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": _adapted(layers),
        },
    )


def load_lora(network: ModelMixin, path: str | Path) -> None:
    """Adds the adapter of a file that `save_lora` or diffusers wrote, with the same bits.

    Args:
        network: must have no adapter yet.
        path: the file, or its directory.

    Raises:
        ValueError: before anything is changed, if there is no such file or it does not fit the network.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    _check_plain("load_lora", network)
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    expected = f"a directory with {WEIGHTS}, or such a file"
    require(file.is_file(), "load_lora", "path", expected, repr(str(path)))
    state = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(file).items() if name.startswith(PREFIX)}
    rank = _fitting_rank(network, state, file)
    stored = _stored_settings(file)
    alpha = stored.get(f"{PREFIX}lora_alpha", rank)  # diffusers' own convention for files without settings
    add_lora(network, rank, alpha, _adapted(state), init=True, seed=0)
    set_peft_model_state_dict(network, state, ADAPTER)


def _fitting_rank(network: ModelMixin, state: dict[str, Tensor], file: Path) -> int:
    """The rank of an adapter in which every pair of matrices fits a linear layer of the network."""
    layers = dict(network.named_modules())
    ranks = {len(tensor) for name, tensor in state.items() if name.endswith(".lora_A.weight")}
    if len(ranks) != 1:
        got = f"{str(file)!r} with ranks {sorted(ranks)}"
        fail("load_lora", "path", "a file with a LoRA of one rank in diffusers' layout", got)
    rank = ranks.pop()
    expected: dict[str, tuple[int, int]] = {}
    for name in _adapted(state):
        layer = layers.get(name)
        if isinstance(layer, nn.Linear):
            expected[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            expected[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    if wrong := sorted(name for name in state if expected.get(name) != tuple(state[name].shape)):
        fail("load_lora", "path", "a file that fits the network's layers", f"{str(file)!r} with {wrong[0]}")
    if missing := sorted(expected.keys() - state.keys()):
        fail("load_lora", "path", "a file with both matrices of each layer", f"{str(file)!r} without {missing[0]}")
    return rank


def _check_plain(function: str, network: nn.Module) -> None:
    require(not has_adapter(network), function, "network", "without an adapter", "one that has an adapter")


def _adapter_layers(network: nn.Module) -> list[Any]:
    """peft's layers in `network`, in any wrapper."""
    if "peft" not in sys.modules:  # then there is none, and the import would take seconds
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def _adapted(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that the adapter's matrices belong to."""
    return sorted({name.rpartition(".lora_")[0] for name in state})


def _stored_settings(file: Path) -> dict[str, Any]:
    """The adapter's settings from the file's header; empty if there are none."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
