"""From what a user writes to a reward that can be called."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from .base import Reward, name_of
from .cache import CachedReward
from .weighted import WeightedReward

REWARDS = {
    "aesthetic": "tempflow_fast.rewards.aesthetic:Aesthetic",
    "clip": "tempflow_fast.rewards.clip:Clip",
    "flow_grpo_server": "tempflow_fast.rewards.flow_grpo_server:FlowGrpoServer",
    "geneval": "tempflow_fast.rewards.geneval:GenEval",
    "geneval_partial": "tempflow_fast.rewards.geneval:GenEvalPartial",
    "geneval_strict": "tempflow_fast.rewards.geneval:GenEvalStrict",
    "hpsv2": "tempflow_fast.rewards.hpsv2:HPSv2",
    "hpsv3": "tempflow_fast.rewards.hpsv3:HPSv3",
    "imagereward": "tempflow_fast.rewards.imagereward:ImageReward",
    "jpeg_compressibility": "tempflow_fast.rewards.jpeg:compressibility",
    "jpeg_incompressibility": "tempflow_fast.rewards.jpeg:incompressibility",
    "ocr": "tempflow_fast.rewards.ocr:Ocr",
    "pickscore": "tempflow_fast.rewards.pickscore:PickScore",
    "remote": "tempflow_fast.rewards.remote:Remote",
    "shapes": "tempflow_fast.rewards.shapes:partial",
    "shapes_strict": "tempflow_fast.rewards.shapes:strict",
}
"""Reward name -> "module:attribute", imported on first use: a reward's libraries load only where it is asked for.

A class is called with the settings of the reward, and its instance is the reward; any other callable is one itself.
"""

Spec = str | Reward | Mapping[str, Any]


def get_reward(reward: Spec) -> WeightedReward:
    """The reward that `reward` describes.

    Args:
        reward: one of
            - a name of `REWARDS`, or "module:attribute";
            - several with weights: "pickscore=1.0,ocr=0.5";
            - a mapping, or its JSON, from names to weights or to settings: `{"pickscore": 0.5, "remote": {"weight":
              1.0, "urls": ["http://127.0.0.1:18080"]}}`. Among the settings, `weight` (default 1), `cache` (number of
              scores to remember by image, prompt and metadata), `timeout` (seconds for a call; null: no limit) and
              `reward` (name, "module:attribute" or callable, where the key is a name of one's own) are understood for
              every reward; the others go to its class;
            - a callable.

    Returns:
        The weighted sum, each reward logged under its name. The same name with the same settings is loaded once in a
        process: weights are large.

    Raises:
        ValueError: for an unknown name, one that cannot be imported, or settings that the reward refuses.
    """
    if isinstance(reward, WeightedReward):
        return reward
    if callable(reward):
        return WeightedReward({name_of(reward): reward}, {name_of(reward): 1.0})
    rewards, weights, timeouts = {}, {}, {}
    for name, entry in _entries(reward).items():
        settings = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weights[name] = _number(name, "weight", settings.pop("weight", 1.0))
        if "timeout" in settings:
            timeout = settings.pop("timeout")
            timeouts[name] = None if timeout is None else _number(name, "timeout", timeout)
        num_remembered = settings.pop("cache", None)
        target = settings.pop("reward", name)
        made = target if callable(target) else _load(target, json.dumps(settings, sort_keys=True, default=str))
        rewards[name] = made if num_remembered is None else _remembering(made, num_remembered)
    return WeightedReward(rewards, weights, timeouts)


def _entries(reward: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Name -> weight or settings."""
    if isinstance(reward, Mapping):
        return reward
    if not isinstance(reward, str) or not reward.strip():
        raise ValueError(f"get_reward: reward must be a name, a mapping or a callable, got {reward!r}")
    if reward.lstrip().startswith("{"):
        try:
            return json.loads(reward)
        except json.JSONDecodeError as error:
            raise ValueError(f"get_reward: reward must be JSON where it begins with {{, got {reward!r}") from error
    found: dict[str, Any] = {}
    for part in reward.split(","):
        name, separator, weight = (text.strip() for text in part.partition("="))
        if not name or name in found or (separator and not weight):
            raise ValueError(f'get_reward: reward must be like "a=1.0,b=0.5" with each name once, got {reward!r}')
        found[name] = weight if separator else 1.0
    return found


def _number(name: str, setting: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"get_reward: {setting} of {name} must be a number, got {value!r}") from error


_memories: dict[tuple[int, int], CachedReward] = {}


def _remembering(reward: Reward, num_entries: int) -> CachedReward:
    """One memory for a reward, however often its description is read."""
    # By identity: a callable of the user's need not be hashable. The memory holds it, so that its id stays its own.
    made = CachedReward(reward, num_entries)
    return _memories.setdefault((id(reward), num_entries), made)


@functools.cache
def _load(target: str, settings: str) -> Reward:
    """The reward for a name or "module:attribute" with its settings as JSON."""
    found, options = _imported(target), json.loads(settings)
    if not isinstance(found, type):
        if options:
            raise ValueError(f"get_reward: reward {target} must be given no settings, got {', '.join(options)}")
        return found
    try:
        return found(**options)
    except (TypeError, ImportError, OSError) as error:
        raise ValueError(f"get_reward: cannot make reward {target}: {error}") from error


def _imported(target: str) -> Callable[..., Any]:
    module_name, separator, attribute = REWARDS.get(target, target).partition(":")
    if not separator:
        close = get_close_matches(target, REWARDS, n=1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        known = ", ".join(sorted(REWARDS))
        raise ValueError(f'get_reward: reward must be one of {known} or "module:function", got "{target}"{hint}')
    if target not in REWARDS and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a script's path has its own folder, not the user's
    try:
        found = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'get_reward: cannot load "{module_name}:{attribute}": {error}') from error
    if not callable(found):
        raise ValueError(f'get_reward: "{module_name}:{attribute}" must be a reward or its class, got {type(found)}')
    return found
