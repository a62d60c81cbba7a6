"""Adapters merged into the weights for the network calls outside training, at fixed addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import Parameter

from ..errors import require
from .lora import adapter_layers, write_merged
from .sharding import is_sharded

_copies: WeakKeyDictionary[nn.Module, Parameter] = WeakKeyDictionary()
"""Adapted layer -> the copy that holds its weight, which other layers may share, with its own adapter. A captured graph
keeps reading this copy."""


@contextmanager
def merged_weights(network: nn.Module) -> Iterator[None]:
    """Inside this context the network computes with W + s B A in place of W and its adapter.

    An adapter in float32 inside a network in 16 bits casts up, multiplies twice, scales, adds and casts down in every
    adapted layer; merged, its calls are those of the bare network. W itself is untouched, so that no bit is lost
    afterwards. A network without an adapter is left as it is.

    Args:
        network: in any wrapper that keeps its weights whole. Nothing may train it inside the context.

    Raises:
        ValueError: if the weights are sharded, or an adapter does more than add to the weight of a linear layer.
    """
    layers = adapter_layers(network)
    for layer in layers:
        _check(layer)
    bases = [layer.get_base_layer() for layer in layers]
    weights = [base.weight for base in bases]
    copies = [_copy_of(base) for base in bases]
    try:
        with torch.no_grad():
            for layer, copy in zip(layers, copies, strict=True):
                write_merged(layer, copy)
        for layer, base, copy in zip(layers, bases, copies, strict=True):
            base._parameters["weight"] = copy
            layer.merged_adapters = list(layer.active_adapters)  # from now on peft calls the base layer alone
        yield
    finally:
        for layer, base, weight in zip(layers, bases, weights, strict=True):
            base._parameters["weight"] = weight
            layer.merged_adapters = []


def merges(network: nn.Module, choice: str | None) -> bool:
    """Whether the calls outside training use merged weights.

    Args:
        network: in any wrapper.
        choice: the setting, "as trained" or "merged"; None: merged where it saves work and no bits of a wide network,
            that is, where an adapter sits in a network of fewer bits that is whole in every process.
    """
    layers = adapter_layers(network)
    if choice is not None or not layers:
        return choice == "merged"
    return all(_is_plain(layer) and not is_sharded(_weight(layer)) and _is_wider(layer) for layer in layers)


def num_merged_bytes(network: nn.Module) -> int:
    """The memory that the copies of `merged_weights` take.

    Args:
        network: in any wrapper.
    """
    return sum(_weight(layer).nbytes for layer in adapter_layers(network))


def _copy_of(base: Any) -> Parameter:
    copy, weight = _copies.get(base), base.weight
    if copy is None or copy.device != weight.device or copy.dtype != weight.dtype:
        copy = _copies[base] = Parameter(torch.empty_like(weight), requires_grad=False)
    return copy


def _weight(layer: Any) -> Parameter:
    weight: Parameter = layer.get_base_layer().weight
    return weight


def _is_wider(layer: Any) -> bool:
    """Whether the adapter has more bits than the weight."""
    itemsizes = [layer.lora_B[name].weight.itemsize for name in layer.active_adapters]
    return min(itemsizes) > _weight(layer).itemsize


def _is_plain(layer: Any) -> bool:
    """Whether the adapter only adds to the weight of a linear layer."""
    names = layer.active_adapters
    variants = any(name in getattr(layer, "lora_variant", {}) for name in names)
    biases = any(getattr(layer, "lora_bias", {}).get(name, False) for name in names)
    return isinstance(layer.get_base_layer(), nn.Linear) and not variants and not biases


def _check(layer: Any) -> None:
    """Refuses what cannot be merged by adding to a weight."""
    whole = "whole in every process (with FSDP, rollout_weights must be 'as trained')"
    sharded = is_sharded(_weight(layer))
    require(not sharded, "merged_weights", "network", whole, "one whose weights are sharded")
    expected = "one with plain LoRA on linear layers"
    require(_is_plain(layer), "merged_weights", "network", expected, f"one with another {type(layer).__name__}")
    ready = not layer.merged and not layer.disable_adapters
    require(ready, "merged_weights", "network", "one with its adapter active and not merged", "another state")
