"""One call of a reward, which may be anybody's code, so that it cannot change the run.

Gradient mode, autocast and default device belong to a thread, and a call has its own (see `deadline`). What the whole
process shares is compared before and after the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import FinalError, Reward, one_line


def _directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # somebody has removed it
        return None


SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the working directory": (_directory, os.chdir),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic mode": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
}
"""What decides where files go and which numbers come out, for the whole process: how to read it and how to set it."""


def isolated_call(reward: Reward, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    """The scores of one call. The reward gets copies, of which those of images cost nothing until it writes to them.

    Args:
        reward: the one to call.
        images: [R, 3, H, W] in [0, 1], on any device.
        prompts: R texts.
        metadata: R entries of the prompt set.

    Returns:
        What the reward returned, as a tensor.

    Raises:
        FinalError: if the reward asks Python to end, or changes what the whole process shares, which is then set back.
        Exception: whatever the reward raises.
    """
    before = {name: read() for name, (read, _) in SHARED.items()}
    try:
        scores = reward(_private(images), list(prompts), _copies(metadata))
    except Exception:
        _set_back(before)
        raise
    except BaseException as error:  # in this thread nobody but the reward can have raised it
        _set_back(before)
        reason = f"{type(error).__name__}: {one_line(error)}; a reward must return scores or raise an error"
        raise FinalError(0, reason) from error
    if changes := _set_back(before):
        raise FinalError(0, f"it has changed {', '.join(changes)}; the whole run shares it")
    return scores if isinstance(scores, Tensor) else torch.as_tensor(scores, device="cpu")


def _private(images: Tensor) -> Tensor:
    """A tensor of the same numbers; memory is copied when the first of the two is written to."""
    return images._lazy_clone() if images.device.type in ("cpu", "cuda") else images.clone()


def _copies(metadata: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the entries, one for all places of the same entry."""
    copies = {id(entry): _copied(entry) for entry in metadata}
    return [copies[id(entry)] for entry in metadata]


def _copied(value: Any) -> Any:
    """A copy of dictionaries and lists in each other; other objects are not copied."""
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def _set_back(before: dict[str, Any]) -> list[str]:
    """Sets back what differs, and returns it in words."""
    changes = []
    for name, (read, write) in SHARED.items():
        if (now := read()) != before[name]:
            changes.append(f"{name} from {before[name]} to {now}")
            write(before[name])
    return changes
