"""Low-rank adapters through peft: which layers get one, and the network without it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..errors import fail, finite, integer, require

if TYPE_CHECKING:
    from diffusers import ModelMixin

ADAPTER = "default"
"""peft's name for the adapter."""
INITS = (True, False, "gaussian", "orthogonal")
"""Values of peft's `init_lora_weights` that leave the network's own weights as they are: those are the reference."""

LAYERS = "names of linear layers of the network"


@dataclass(frozen=True)
class Size:
    """Rank and alpha of one layer's adapter."""

    rank: int
    alpha: float


def add_lora(
    network: ModelMixin,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None,
    init: str | bool,
    seed: int,
    excluded: Sequence[str] = (),
) -> None:
    """Adds an adapter to linear layers, and freezes everything else.

    Args:
        network: gets the adapter; it must have none yet.
        rank: inner dimension of the adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: the layers whose names end in one of these are adapted; all of them must be linear. None: those of
            attention.
        init: peft's `init_lora_weights`, one of `INITS`.
        seed: decides the initial weights.
        excluded: modules, named in full, whose layers are left out.

    Raises:
        ValueError: if the rank or alpha is not positive, the network has an adapter, a target names no layer or one
            that is not linear, or the initial weights would change the network's own.
    """
    require(integer("add_lora", "rank", rank) >= 1, "add_lora", "rank", "positive", rank)
    require(finite("add_lora", "alpha", alpha) > 0, "add_lora", "alpha", "positive", alpha)
    require(init in INITS, "add_lora", "init", f"one of {INITS}", repr(init))
    check_plain("add_lora", network)
    layers = attention_layers(network) if targets is None else _layers(network, targets)
    apart = tuple(f"{part}." for part in excluded)
    adapted = [name for name in layers if not f"{name}.".startswith(apart)]
    got = f"{targets!r} of {type(network).__name__}, without one whose output depends on it"
    require(bool(adapted), "add_lora", "targets", LAYERS, got)
    attach(network, dict.fromkeys(adapted, Size(rank, alpha)), init, seed)


def attention_layers(network: nn.Module) -> list[str]:
    """The linear layers of attention, in all blocks, by the names that diffusers gives them.

    The public training scripts adapt these alone for SD3, and feed-forward layers as well for FLUX and Qwen-Image (see
    `settings/recipes/`).

    Args:
        network: without an adapter.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if re.search(r"(^|\.)\w*att(n|ention)\w*\.", name)]


def attach(
    network: ModelMixin, sizes: Mapping[str, Size], init: str | bool = True, seed: int = 0, rslora: bool = False
) -> None:
    """Adds an adapter to exactly these layers, in float32, and freezes everything else.

    Args:
        network: without an adapter.
        sizes: name of a linear layer -> the size of its adapter.
        init: peft's `init_lora_weights`.
        seed: decides the initial weights.
        rslora: whether the adapter's output is scaled by alpha / sqrt(rank) instead of alpha / rank.
    """
    from peft import LoraConfig, inject_adapter_in_model

    usual = Size(
        Counter(size.rank for size in sizes.values()).most_common(1)[0][0],
        Counter(size.alpha for size in sizes.values()).most_common(1)[0][0],
    )
    # peft takes names in a list for the ends of names, and keys of patterns for expressions.
    exact = {name: f"^{re.escape(name)}" for name in sizes}
    config = LoraConfig(
        r=usual.rank,
        lora_alpha=usual.alpha,
        rank_pattern={exact[name]: size.rank for name, size in sizes.items() if size.rank != usual.rank},
        alpha_pattern={exact[name]: size.alpha for name, size in sizes.items() if size.alpha != usual.alpha},
        target_modules="|".join(map(re.escape, sizes)),
        init_lora_weights=init,
        use_rslora=rslora,
    )
    network.requires_grad_(False)
    # A separate generator: every process starts from the same adapter, and no other random numbers change.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if hasattr(network, "add_adapter"):
            network.add_adapter(config, ADAPTER)
        else:  # a network whose pipeline loads no adapters
            inject_adapter_in_model(config, network, ADAPTER)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _layers(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that the targets mean."""
    listed = not isinstance(targets, str) and len(targets) > 0 and all(isinstance(target, str) for target in targets)
    require(listed, "add_lora", "targets", f"a list of {LAYERS}", repr(targets))
    found: dict[str, None] = {}
    for target in targets:
        named = {name: module for name, module in network.named_modules() if f".{name}".endswith(f".{target}")}
        require(bool(named), "add_lora", "targets", LAYERS, f"{target!r}, which names none")
        for name, module in named.items():
            if not isinstance(module, nn.Linear):
                fail("add_lora", "targets", LAYERS, f"{target!r}, which names the {type(module).__name__} {name}")
        found |= dict.fromkeys(named)
    return list(found)


def has_adapter(network: nn.Module) -> bool:
    """Whether peft has added an adapter anywhere in `network`.

    Args:
        network: in any wrapper.
    """
    return bool(adapter_layers(network))


def described(network: nn.Module) -> str | None:
    """The adapter in words, such as "LoRA of rank 32, alpha 64, on 48 layers"; None if there is no adapter.

    Args:
        network: in any wrapper.
    """
    layers = [layer for layer in adapter_layers(network) if ADAPTER in getattr(layer, "r", {})]
    if not layers:
        return None
    ranks, alphas = [layer.r[ADAPTER] for layer in layers], [layer.lora_alpha[ADAPTER] for layer in layers]
    return f"LoRA of rank {_span(ranks)}, alpha {_span(alphas)}, on {len(layers)} layers"


@contextmanager
def adapters_disabled(network: nn.Module) -> Iterator[None]:
    """Inside this context `network` computes without its adapters.

    Args:
        network: in any wrapper.

    Raises:
        ValueError: inside `merged_weights`, or if other weights are trained as well.
    """
    check_adapter_alone("reference", network)
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    layers = adapter_layers(network)
    # peft would subtract what it believes it has added.
    apart = not any(layer.merged for layer in layers)
    require(apart, "reference", "network", "one whose adapter is not merged into its weights", "one where it is")
    _enable(layers, False, flags)
    try:
        yield
    finally:
        _enable(layers, True, flags)


def _enable(layers: Sequence[Any], enabled: bool, flags: Sequence[tuple[Parameter, bool]]) -> None:
    """Switches adapters; what is trained stays as it was.

    peft freezes a disabled adapter, which a sharded wrapper would keep from its first call on, and trains all of an
    enabled one, also parts that were frozen.
    """
    for layer in layers:
        layer.enable_adapters(enabled)
    for parameter, is_trained in flags:
        parameter.requires_grad_(is_trained)


def merged(network: ModelMixin) -> ModelMixin:
    """A copy of the network with the adapter merged into its weights.

    `network` is unchanged: merging in place and unmerging would not restore its bits.

    Args:
        network: has an adapter.

    Returns:
        A network of the same class without an adapter, which computes what `network` does. It shares the weights that
        are not adapted.
    """
    deltas, adapted = {}, set(adapter_layers(network))
    for name, layer in network.named_modules():
        if layer in adapted:
            deltas[f"{name}.weight"] = torch.empty_like(layer.get_base_layer().weight, requires_grad=False)
            with torch.no_grad():
                write_merged(layer, deltas[f"{name}.weight"])
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in network.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if ".lora_" not in name} | deltas
    with torch.device("meta"):
        plain = type(network).from_config(network.config)
    plain.load_state_dict(state, assign=True)
    return plain


def write_merged(layer: Any, out: Tensor) -> None:
    """Writes W + s B A of one layer, with the bits of peft's own merge in place.

    Args:
        layer: of peft.
        out: like the layer's weight.
    """
    out.copy_(layer.get_base_layer().weight)
    for adapter in layer.active_adapters:
        out += layer.get_delta_weight(adapter)  # rounded once where the adapter has more bits than the weight


def check_plain(function: str, network: nn.Module) -> None:
    """Refuses a network that has an adapter.

    Args:
        function: the caller, for the error.
        network: in any wrapper.

    Raises:
        ValueError: naming the function.
    """
    require(not has_adapter(network), function, "network", "without an adapter", "one that has an adapter")


def check_adapter_alone(function: str, network: nn.Module) -> None:
    """Refuses a network with an adapter that trains other weights as well.

    Without its adapter it would not be what training started from, and a file of the adapter would lack them.

    Args:
        function: the caller, for the error.
        network: in any wrapper.

    Raises:
        ValueError: naming the function and a weight.
    """
    own = {id(weight) for layer in adapter_layers(network) for weight in layer.parameters()}
    own -= {id(weight) for layer in adapter_layers(network) for weight in layer.get_base_layer().parameters()}
    trained = (name for name, weight in network.named_parameters() if weight.requires_grad and id(weight) not in own)
    other = next(trained, None)
    require(other is None, function, "network", "one that trains its adapter alone", f"one that also trains {other}")


def adapter_layers(network: nn.Module) -> list[Any]:
    """peft's layers in a network.

    Args:
        network: in any wrapper.
    """
    if "peft" not in sys.modules:  # then there is none, and the import would take seconds
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def _span(values: Sequence[float]) -> str:
    """One number, or the smallest and the largest."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
