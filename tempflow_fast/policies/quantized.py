"""Linear layers in 8 bits by torchao, for the network calls outside training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import fail, require
from ..quiet import quiet
from .sharding import is_sharded

MULTIPLE = 16
"""Both sides of a layer's weight must be multiples of it for the 8-bit matrix kernels of GPUs."""

_frozen = WeakTensorKeyDictionary()
"""Parameter -> kind -> the version that was quantized, and its form: weights that do not change are quantized once."""


@contextmanager
def quantized(network: nn.Module, kind: str) -> Iterator[None]:
    """Inside this context the linear layers of the network's blocks multiply in 8 bits, weights and activations.

    With int8, weights have one scale per row and activations one per token; with fp8, both have one per tensor, since
    torchao's scales per row take bf16 alone and weights that are trained are in float32. Trained weights are quantized
    again at every entry. Adapters, embeddings, norms, and the layers before and after the blocks keep their precision.

    Args:
        network: keeps its blocks in a ModuleList.
        kind: "int8"; or "fp8", for GPUs with such instructions.

    Raises:
        ValueError: if torchao is not installed, the hardware cannot do it, or the network is sharded or has no such
            layers.
    """
    layers = _layers(network)
    weights: list[Any] = [layer.weight for layer in layers]  # parameters, which nn.Linear declares as tensors
    try:
        for layer, weight in zip(layers, weights, strict=True):
            layer._parameters["weight"] = _in_8_bits(weight, kind)
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer._parameters["weight"] = weight


def check_quantizable(kind: str, device: torch.device) -> None:
    """Multiplies once in 8 bits, to find out before the work whether library and device can.

    Args:
        kind: "int8" or "fp8".
        device: where to multiply.

    Raises:
        ValueError: if they cannot.
    """
    network = nn.Sequential(nn.ModuleList([nn.Linear(MULTIPLE, MULTIPLE, device=device)]))
    (layer,) = _layers(network)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16), quantized(network, kind):
        layer(torch.ones(MULTIPLE, MULTIPLE, device=device))


def _layers(network: nn.Module) -> list[nn.Linear]:
    lists = [name for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    layers = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and any(name.startswith(f"{blocks}.") for blocks in lists)
        and "lora_" not in name
        and not any(side % MULTIPLE for side in module.weight.shape)
    ]
    require(bool(layers), "quantized", "network", "a module with blocks of linear layers", type(network).__name__)
    sharded = any(is_sharded(layer.weight) for layer in layers)
    require(not sharded, "quantized", "network", "whole in every process", "one whose weights are sharded")
    return layers


def _in_8_bits(weight: Parameter, kind: str) -> Parameter:
    version, made = _frozen.get(weight, {}).get(kind, (None, None))
    if version != weight._version:  # merged weights are written anew in every iteration
        made = _quantize(weight, kind)
        if not weight.requires_grad:
            _frozen.setdefault(weight, {})[kind] = weight._version, made
    return made


def _quantize(weight: Parameter, kind: str) -> Parameter:
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = Parameter(weight.detach(), requires_grad=False)
    holder = nn.Sequential(layer)
    config, quantize_ = _torchao(kind)
    try:
        quantize_(holder, config)
    except AssertionError as error:  # torchao raises it for hardware that cannot
        fail("quantized", "kind", "supported by the device", f"{kind} on {weight.device}: {error}")
    quantized_layer: Any = holder[0]
    return quantized_layer.weight


def _torchao(kind: str) -> tuple[Any, Callable[[nn.Module, Any], None]]:
    """The config of a kind, and what applies it."""
    try:
        with quiet():
            from torchao import quantization
    except ImportError as error:
        fail("quantized", "kind", "unused without torchao (pip install torchao)", f"{kind} ({error})")
    if kind == "int8":
        return quantization.Int8DynamicActivationInt8WeightConfig(), quantization.quantize_
    per_tensor = quantization.PerTensor()
    return quantization.Float8DynamicActivationFloat8WeightConfig(granularity=per_tensor), quantization.quantize_
