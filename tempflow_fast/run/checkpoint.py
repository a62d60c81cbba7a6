"""Checkpoints: everything needed to resume a run as if it had not been interrupted.

    weights.safetensors      the trained weights, under their names in the network
    average.safetensors      their moving average, if the run keeps one
    optimizer.safetensors    the optimizer's tensors, as weight/name
    random.safetensors       states of the random number generators
    lora/                    the adapter for diffusers' `load_lora_weights`, if one is trained
    state.json               progress of the run, the rest of the state of optimizer and average, the settings

Prompts and noise are functions of the seed and the iteration, so they need only the number of the iteration. A
checkpoint is written under another name and renamed: an existing one is complete, even after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ..errors import NotFiniteError, fail
from ..files import remove, written_aside
from ..policies.base import Policy
from ..policies.finite import all_finite
from ..policies.sharding import gathered, is_sharded
from ..processes import Processes
from ..settings.run import TrainConfig
from . import random_state
from .average import WeightAverage

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that data-parallel and compiled wrappers add to the names of parameters."""


@dataclass
class TrainingState:
    """Everything that changes during a run."""

    policy: Policy
    """The model in training."""
    optimizer: Optimizer
    """Holds the policy's parameters."""
    average: WeightAverage | None
    """Their moving average; None: the run keeps none."""
    num_iterations: int = 0
    """Number of iterations that are done."""
    seconds: float = 0.0
    """Wall time of these iterations, in seconds."""


def save_checkpoint(
    directory: Path, state: TrainingState, config: TrainConfig, processes: Processes, keep: int
) -> None:
    """Writes a checkpoint of the current state, then removes all but the latest ones.

    All processes must call it together; the main process writes.

    Args:
        directory: holds the checkpoints of the run.
        state: what to write.
        config: the settings.
        processes: those that share the run.
        keep: how many checkpoints to keep.

    Raises:
        NotFiniteError: in all processes, if the state is not finite in one; nothing is written or removed.
    """
    require_finite_state(state, processes)
    keep_it = processes.is_main
    weights = {name: _whole(parameter, keep_it) for name, parameter in _named(state.policy).items()}
    averages = [_whole(tensor, keep_it) for tensor in state.average.weights] if state.average else []
    average = dict(zip(weights, averages, strict=True)) if averages else {}
    tensors, scalars = _packed(state.optimizer.state_dict(), weights, keep_it)
    files = {"weights": weights, "average": average, "optimizer": tensors}
    with processes.whole(state.policy):
        if processes.is_main:
            _write(directory, state, config, files, scalars)
            for old in _all(directory)[:-keep]:
                remove(old)
    processes.wait()


def require_finite_state(state: TrainingState, processes: Processes) -> None:
    """Refuses to keep a state with an infinite or NaN number in weights, average or optimizer.

    Args:
        state: the state; all processes must call this together.
        processes: those that share the run.

    Raises:
        NotFiniteError: in all processes, if the state is not finite in one.
    """
    average = state.average.weights if state.average else []
    optimizer = [value for _, value in _leaves(state.optimizer.state_dict()["state"]) if isinstance(value, Tensor)]
    finite = all_finite([*state.policy.network.parameters(), *average, *optimizer])
    if processes.max(torch.tensor(int(not finite))):
        raise NotFiniteError(
            f"after {state.num_iterations} iterations, weights, their average or the optimizer's state are infinite or "
            "NaN; they are not saved, and earlier checkpoints stay"
        )


def _write(
    directory: Path,
    state: TrainingState,
    config: TrainConfig,
    files: dict[str, dict[str, Tensor]],
    scalars: dict[str, Any],
) -> None:
    """Writes a checkpoint from its tensors by file; only the main process calls it."""
    random, random_scalars = random_state.captured()
    facts = {
        "num_iterations": state.num_iterations,
        "seconds": state.seconds,
        "optimizer": scalars,
        "average": state.average.counts() if state.average else None,
        "random": random_scalars,
        "config": json.loads(config.to_json()),
    }
    with written_aside(directory / f"{state.num_iterations:06d}") as aside:
        aside.mkdir()
        for name, content in {**files, "random": random}.items():
            if content:
                save_file({key: tensor.contiguous() for key, tensor in content.items()}, aside / f"{name}.safetensors")
        if config.policy.lora_rank is not None:
            policy: Any = state.policy  # one that has an adapter has save_lora, too
            policy.save_lora(aside / "lora")
        (aside / "state.json").write_text(json.dumps(facts))


def latest_checkpoint(directory: Path) -> Path | None:
    """Returns the checkpoint with the most iterations, or None.

    Args:
        directory: holds the checkpoints of a run.
    """
    return max(_all(directory), default=None)


def load_checkpoint(path: Path, state: TrainingState) -> None:
    """Restores a state from a checkpoint; every process reads the files.

    Args:
        path: the checkpoint.
        state: changed in place.

    Raises:
        ValueError: if the checkpoint does not fit the policy, the optimizer or the average.
    """
    parameters, facts = _named(state.policy), json.loads((path / "state.json").read_text())
    _fill(parameters, load_file(path / "weights.safetensors"), path)
    has_average, expects_average = state.average is not None, facts["average"] is not None
    if has_average != expects_average:
        expected = f"one {'with' if expects_average else 'without'} a moving average, as in {str(path)!r}"
        fail("load_checkpoint", "state", expected, f"one {'with' if has_average else 'without'} (see ema_decay)")
    if state.average is not None:
        averages = dict(zip(parameters, state.average.weights, strict=True))
        _fill(averages, load_file(path / "average.safetensors"), path)
        state.average.set_counts(**facts["average"])
    tensors = load_file(path / "optimizer.safetensors") if (path / "optimizer.safetensors").is_file() else {}
    state.optimizer.load_state_dict(_unpacked(tensors, facts["optimizer"], parameters))
    random_state.restore(load_file(path / "random.safetensors"), facts["random"])
    state.num_iterations, state.seconds = facts["num_iterations"], facts["seconds"]


def _all(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("[0-9]*") if (path / "state.json").is_file())


def _named(policy: Policy) -> dict[str, Parameter]:
    """Name -> trained parameter, in the order of the optimizer; the names have no prefixes of wrappers."""
    named = {}
    for name, parameter in policy.network.named_parameters():
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        if parameter.requires_grad:
            named[name] = parameter
    return named


@torch.no_grad()
def _fill(targets: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    """Copies tensors into `targets` by name."""
    if targets.keys() != tensors.keys():
        missing, more = len(targets.keys() - tensors.keys()), len(tensors.keys() - targets.keys())
        got = f"{str(path)!r} with {missing} weights missing and {more} unknown"
        fail("load_checkpoint", "path", "a checkpoint with the weights of the policy", got)
    for name, target in targets.items():
        if target.shape != tensors[name].shape:
            wanted, found = list(target.shape), list(tensors[name].shape)
            fail("load_checkpoint", "path", f"a checkpoint with {name} of {wanted}", f"{found} in {str(path)!r}")
        target.copy_(_like(tensors[name], target))


def _packed(state: dict[str, Any], weights: dict[str, Tensor], keep: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state dict as (tensors by weight/name, everything else); for `keep` see `_whole`."""
    tensors, rest, names = {}, {}, list(weights)
    for index, entries in state["state"].items():
        for path, value in _leaves(entries):
            key = "/".join((names[index], *path))
            if not isinstance(value, Tensor):
                rest[key] = value
            else:
                # All weights may share a small tensor, which the file format does not support.
                is_like_weight = value.shape == weights[names[index]].shape
                tensors[key] = _whole(value, keep) if is_like_weight else _whole(value, keep).clone()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    return tensors, {"state": rest, "groups": groups, "sizes": sizes}


def _unpacked(tensors: dict[str, Tensor], scalars: dict[str, Any], parameters: dict[str, Parameter]) -> dict[str, Any]:
    """The state dict from which `_packed` made these tensors and scalars."""
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


def _leaves(entries: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, value) of every entry in nested dictionaries."""
    for key, value in entries.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _whole(tensor: Tensor, keep: bool) -> Tensor:
    """The whole tensor on the host, gathered if it is sharded; a process that does not `keep` it only takes part."""
    tensor = tensor.detach()
    whole = gathered(tensor)
    return whole.cpu() if keep else tensor


def _like(tensor: Tensor, target: Tensor) -> Tensor:
    """The tensor on the device of `target`, and sharded like it."""
    tensor = tensor.to(target.device)
    if not is_sharded(target):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout: Any = target  # a DTensor
    return distribute_tensor(tensor, layout.device_mesh, layout.placements)
