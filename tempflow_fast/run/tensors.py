"""The tensors of a training state by name, whole, on the host; and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..checksums import LENGTH
from ..errors import fail
from ..policies.base import Policy
from ..policies.sharding import gathered, is_sharded
from ..processes import Processes

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that data-parallel and compiled wrappers add to the names of parameters."""


def named(policy: Policy) -> dict[str, Parameter]:
    """Returns name -> trained parameter, in the order of the optimizer; the names have no prefixes of wrappers.

    Args:
        policy: the model, whose network may be in a wrapper.
    """
    named = {}
    for name, parameter in policy.network.named_parameters():
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        if parameter.requires_grad:
            named[name] = parameter
    return named


@torch.no_grad()
def fill(targets: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    """Copies tensors into others by name.

    Args:
        targets: name -> tensor to change.
        tensors: name -> what it gets.
        path: where the tensors come from, for errors.

    Raises:
        ValueError: naming what is missing, unknown or of another shape, before anything is changed.
    """
    if targets.keys() != tensors.keys():
        missing, more = len(targets.keys() - tensors.keys()), len(tensors.keys() - targets.keys())
        got = f"{str(path)!r} with {missing} weights missing and {more} unknown"
        fail("load_checkpoint", "path", "a checkpoint with the weights of the policy", got)
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            wanted, found = list(target.shape), list(tensors[name].shape)
            fail("load_checkpoint", "path", f"a checkpoint with {name} of {wanted}", f"{found} in {str(path)!r}")
    for name, target in targets.items():
        target.copy_(_like(tensors[name], target))


def packed(state: dict[str, Any], weights: dict[str, Tensor], keep: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Takes an optimizer's state dict apart.

    Args:
        state: the state dict.
        weights: name -> weight, in the order of the optimizer.
        keep: see `whole`.

    Returns:
        Its tensors by weight/name, and everything else.
    """
    tensors, rest, names = {}, {}, list(weights)
    for index, entries in state["state"].items():
        for path, value in leaves(entries):
            key = "/".join((names[index], *path))
            if not isinstance(value, Tensor):
                rest[key] = value
            else:
                # All weights may share a small tensor, which the file format does not support.
                is_like_weight = value.shape == weights[names[index]].shape
                tensors[key] = whole(value, keep) if is_like_weight else whole(value, keep).clone()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    return tensors, {"state": rest, "groups": groups, "sizes": sizes}


def unpacked(tensors: dict[str, Tensor], scalars: dict[str, Any], parameters: dict[str, Parameter]) -> dict[str, Any]:
    """Returns the state dict from which `packed` made these tensors and scalars.

    Args:
        tensors: by weight/name.
        scalars: everything else.
        parameters: name -> parameter, in the order of the optimizer.
    """
    indices = {name: index for index, name in enumerate(parameters)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *scalars["state"].items()]:
        name, *path, last = key.split("/")
        entries = state.setdefault(indices[name], {})
        for part in path:
            entries = entries.setdefault(part, {})
        is_like_weight = isinstance(value, Tensor) and value.shape == parameters[name].shape
        entries[last] = _like(value, parameters[name]) if is_like_weight else value
    numbers = iter(range(len(indices)))
    groups = [
        {**group, "params": [next(numbers) for _ in range(size)]}
        for group, size in zip(scalars["groups"], scalars["sizes"], strict=True)
    ]
    return {"state": state, "param_groups": groups}


def leaves(entries: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields (keys, value) of every entry in nested dictionaries.

    Args:
        entries: the outer dictionary.
        path: the keys that lead to it.
    """
    for key, value in entries.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def whole(tensor: Tensor, keep: bool) -> Tensor:
    """Returns the whole tensor on the host, gathered if it is sharded.

    Args:
        tensor: on any device.
        keep: whether this process needs it; one that does not only takes part in gathering.
    """
    tensor = tensor.detach()
    complete = gathered(tensor)
    return complete.cpu() if keep else tensor


def weights_digest(policy: Policy, processes: Processes) -> str:
    """Returns a digest of the trained weights as they are now; all processes must call it together.

    Reading them takes about a second per GB, little next to an evaluation, and nothing but their content tells whether
    an evaluation is of these weights.

    Args:
        policy: the model.
        processes: those that share the run.

    Returns:
        The digest in the main process; that of nothing in the others.
    """
    state = hashlib.sha256()
    for name, parameter in named(policy).items():  # one at a time: all together may not fit on the host
        tensor = whole(parameter, processes.is_main)
        if processes.is_main:
            state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            state.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()[:LENGTH]


def _like(tensor: Tensor, target: Tensor) -> Tensor:
    """The tensor on the device of `target`, and sharded like it."""
    tensor = tensor.to(target.device)
    if not is_sharded(target):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout: Any = target  # a DTensor
    return distribute_tensor(tensor, layout.device_mesh, layout.placements)
