"""The states of the random number generators of this process, for code that draws from them, such as a user's reward.

Nothing in the package does: its noise and its prompts are functions of the seed. A checkpoint holds the states of the
main process, and all processes resume with them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed(number: int) -> None:
    """Seeds all generators.

    Args:
        number: the seed, in 0..2^31-1.
    """
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def captured() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the states of Python, numpy, torch and its GPUs: those that are tensors, and the others, for JSON."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state()  # numpy's stubs allow a dict, which it returns only when asked
    name, keys, *rest = state
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.copy())}
    if torch.cuda.is_initialized():
        tensors |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"python": [version, list(words), gauss], "numpy": [name, *rest]}


def restore(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    """Restores what `captured` returned, for the GPUs that both machines have.

    Args:
        tensors: the states that are tensors.
        scalars: the other states.
    """
    version, words, gauss = scalars["python"]
    random.setstate((version, tuple(words), gauss))
    name, *rest = scalars["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy(), *rest))
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count()):
        if f"cuda:{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda:{index}"], index)


@contextmanager
def kept() -> Iterator[None]:
    """Restores all states after the block, so that what follows draws the same numbers whether it was run or not."""
    tensors, scalars = captured()
    try:
        yield
    finally:
        restore(tensors, scalars)


@contextmanager
def undone() -> Iterator[None]:
    """Restores all states if the block fails, since it is then repeated."""
    tensors, scalars = captured()
    try:
        yield
    except BaseException:
        restore(tensors, scalars)
        raise
