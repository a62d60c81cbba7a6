"""Checkpoints: everything needed to resume a run as if it had not been interrupted.

    weights.safetensors      the trained weights, under their names in the network
    average.safetensors      their moving average, if the run keeps one
    optimizer.safetensors    the optimizer's tensors, as weight/name
    random.safetensors       states of the random number generators
    lora/                    the adapter for diffusers' `load_lora_weights`, if one is trained
    state.json               progress of the run, the rest of the state of optimizer and average, the settings, and
                             where the numbers come from (see `origin`)
    checksums.sha256         a digest of each of these files (see `tempflow_fast.checksums`)

Prompts and noise are functions of the seed and the iteration, so they need only the number of the iteration. A
checkpoint is written under another name and renamed: an existing one is complete, even after a crash. Whether it is
still what was written is checked before it is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from ..checksums import write_checksums
from ..errors import NotFiniteError, fail
from ..files import remove, written_aside
from ..grpo.budget import BranchBudget
from ..grpo.lengths import TailLengths
from ..grpo.levels import ChosenLevels
from ..policies.base import Policy
from ..policies.finite import all_finite
from ..processes import Processes
from ..settings.run import TrainConfig
from . import random_state
from .average import WeightAverage
from .numbered import all_numbered, numbered, read_facts
from .origin import Origin
from .tensors import fill, leaves, named, packed, unpacked, whole

MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, SafetensorError)
"""What reading a state raises where a file, though undamaged, does not hold what a checkpoint does."""


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
    full_tails: bool = False
    """Whether the run has gone back to full tails, see `gate_action`."""
    budget: BranchBudget = field(default_factory=BranchBudget)
    """What is known about the branch steps, see `branch_budget`."""
    tails: TailLengths = field(default_factory=TailLengths)
    """The lengths of adaptive tails, see `tail_steps`."""
    levels: ChosenLevels = field(default_factory=ChosenLevels)
    """The levels of short tails, see `tail_levels`."""


def save_checkpoint(
    directory: Path, state: TrainingState, config: TrainConfig, processes: Processes, keep: int, origin: Origin
) -> None:
    """Writes a checkpoint of the current state, then removes all but the latest ones up to it.

    All processes must call it together; the main process writes.

    Args:
        directory: holds the checkpoints of the run.
        state: what to write.
        config: the settings.
        processes: those that share the run.
        keep: how many checkpoints to keep.
        origin: where the numbers of the run come from.

    Raises:
        NotFiniteError: in all processes, if the state is not finite in one; nothing is written or removed.
    """
    require_finite_state(state, processes)
    keep_it = processes.is_main
    weights = {name: whole(parameter, keep_it) for name, parameter in named(state.policy).items()}
    averages = [whole(tensor, keep_it) for tensor in state.average.weights] if state.average else []
    average = dict(zip(weights, averages, strict=True)) if averages else {}
    tensors, scalars = packed(state.optimizer.state_dict(), weights, keep_it)
    files = {"weights": weights, "average": average, "optimizer": tensors}
    with processes.whole(state.policy):
        if processes.is_main:
            _write(numbered(directory, state.num_iterations), state, config, origin, files, scalars)
            done = [path for number, path in all_numbered(directory).items() if number <= state.num_iterations]
            for old in done[:-keep]:
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
    optimizer = [value for _, value in leaves(state.optimizer.state_dict()["state"]) if isinstance(value, Tensor)]
    finite = all_finite([*state.policy.network.parameters(), *average, *optimizer])
    if processes.max(torch.tensor(int(not finite))):
        raise NotFiniteError(
            f"after {state.num_iterations} iterations, weights, their average or the optimizer's state are infinite or "
            "NaN; they are not saved, and earlier checkpoints stay"
        )


def _write(
    path: Path,
    state: TrainingState,
    config: TrainConfig,
    origin: Origin,
    files: dict[str, dict[str, Tensor]],
    scalars: dict[str, Any],
) -> None:
    """Writes a checkpoint from its tensors by file; only the main process calls it."""
    random, random_scalars = random_state.captured()
    facts = {
        "num_iterations": state.num_iterations,
        "seconds": state.seconds,
        "full_tails": state.full_tails,
        "budget": state.budget.as_json(),
        "tails": state.tails.as_json(),
        "levels": state.levels.as_json(),
        "optimizer": scalars,
        "average": state.average.counts() if state.average else None,
        "random": random_scalars,
        "config": json.loads(config.to_json()),
        "origin": origin.as_json(),
    }
    with written_aside(path) as aside:
        aside.mkdir()
        for name, content in {**files, "random": random}.items():
            if content:
                save_file({key: tensor.contiguous() for key, tensor in content.items()}, aside / f"{name}.safetensors")
        if config.policy.lora_rank is not None:
            policy: Any = state.policy  # one that has an adapter has save_lora, too
            policy.save_lora(aside / "lora")
        (aside / "state.json").write_text(json.dumps(facts))
        write_checksums(aside)


def load_checkpoint(path: Path, state: TrainingState) -> None:
    """Restores a state from a checkpoint; every process reads the files.

    Args:
        path: the checkpoint.
        state: changed in place.

    Raises:
        ValueError: if the checkpoint does not fit the policy, the optimizer or the average.
    """
    parameters, facts = named(state.policy), read_facts(path)
    try:
        _load_weights(path, state, facts)
        has_tensors = (path / "optimizer.safetensors").is_file()  # plain gradient descent has none
        tensors = load_file(path / "optimizer.safetensors") if has_tensors else {}
        found = unpacked(tensors, facts["optimizer"], parameters)
        state.optimizer.load_state_dict({**found, "param_groups": _own_settings(found, state.optimizer)})
        random_state.restore(load_file(path / "random.safetensors"), facts["random"])
        state.num_iterations, state.seconds = int(facts["num_iterations"]), float(facts["seconds"])
        state.full_tails = bool(facts.get("full_tails", False))  # older checkpoints have no tails but full ones
        state.budget = BranchBudget.from_json(facts["budget"]) if "budget" in facts else BranchBudget()
        state.tails = TailLengths.from_json(facts["tails"]) if "tails" in facts else TailLengths()
        state.levels = ChosenLevels.from_json(facts["levels"]) if "levels" in facts else ChosenLevels()
    except MALFORMED as error:
        if isinstance(error, ValueError) and str(error).startswith("load_checkpoint"):
            raise
        reason = f"{str(path)!r}, with {type(error).__name__}: {error}"
        raise ValueError(f"load_checkpoint: path must be a checkpoint of this run, got {reason}") from error


def _own_settings(found: dict[str, Any], optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups of a saved optimizer with the settings of this one: a resumed run may change them."""
    groups = zip(found["param_groups"], optimizer.param_groups, strict=True)
    return [{**saved, **own, "params": saved["params"]} for saved, own in groups]


def _load_weights(path: Path, state: TrainingState, facts: dict[str, Any]) -> None:
    """Restores the weights and their average."""
    parameters = named(state.policy)
    fill(parameters, load_file(path / "weights.safetensors"), path)
    has_average, expects_average = state.average is not None, facts["average"] is not None
    if has_average != expects_average:
        expected = f"one {'with' if expects_average else 'without'} a moving average, as in {str(path)!r}"
        fail("load_checkpoint", "state", expected, f"one {'with' if has_average else 'without'} (see ema_decay)")
    if state.average is not None:
        averages = dict(zip(parameters, state.average.weights, strict=True))
        fill(averages, load_file(path / "average.safetensors"), path)
        state.average.set_counts(**facts["average"])
