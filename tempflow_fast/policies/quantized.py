"""Linear layers in 8 bits by torchao, for the network calls outside training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn import Parameter
from torch.utils.weak import WeakTensorKeyDictionary

MULTIPLE = 16
"""Of both sides of a layer's weight: what the 8-bit matrix kernels of GPUs ask for."""

_frozen = WeakTensorKeyDictionary()
"""Parameter -> kind -> what it became: weights that are not trained are quantized once."""


@contextmanager
def quantized(network: nn.Module, kind: str) -> Iterator[None]:
    """Inside this context the linear layers of the network's blocks multiply in 8 bits, weights and activations.

    Weights have a scale per row, activations one per token (torchao's dynamic quantization). Trained weights are
    quantized anew at every entry; adapters, embeddings, norms and the ends of the network are left alone.

    Args:
        network: keeps its blocks in a ModuleList.
        kind: "int8"; or "fp8", for GPUs with such instructions.

    Raises:
        ValueError: without torchao or hardware for it, for a sharded network, or for one without such layers.
    """
    layers = _layers(network)
    weights = [layer.weight for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            layer._parameters["weight"] = _in_8_bits(weight, kind)
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer._parameters["weight"] = weight


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
    if not layers:
        raise ValueError(f"quantized: network must have blocks of linear layers, got {type(network).__name__}")
    if any(hasattr(layer.weight, "full_tensor") for layer in layers):
        raise ValueError("quantized: network must be whole in every process, got one whose weights are sharded")
    return layers


def _in_8_bits(weight: Parameter, kind: str) -> Parameter:
    known = _frozen.get(weight, {})
    if kind not in known:
        made = _quantize(weight, kind)
        if weight.requires_grad:
            return made
        known = _frozen.setdefault(weight, {})
        known[kind] = made
    return known[kind]


def _quantize(weight: Parameter, kind: str) -> Parameter:
    try:
        from torchao import quantization
    except ImportError as error:
        raise ValueError(f"quantized: {kind} needs the library: pip install torchao ({error})") from error
    configs = {
        "int8": quantization.Int8DynamicActivationInt8WeightConfig,
        "fp8": quantization.Float8DynamicActivationFloat8WeightConfig,
    }
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = Parameter(weight.detach(), requires_grad=False)
    holder = nn.Sequential(layer)
    try:
        quantization.quantize_(holder, configs[kind]())
    except AssertionError as error:  # torchao's word for hardware that cannot
        raise ValueError(f"quantized: kind must suit the device, got {kind} on {weight.device}: {error}") from error
    return holder[0].weight
