"""From a user's description to a callable reward."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from .. import extensions
from ..errors import fail, require
from ..extensions import find_code
from ..files import parsed_json
from ..hub import without_retries
from ..text import shortened
from .base import Reward, name_of, one_line
from .cache import CachedReward
from .frames import FramesReward
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
"""Reward name -> "module:attribute", imported on first use: a reward's libraries load only if it is asked for.

Installed packages add names by entry points of the group tempflow_fast.rewards.

A class is called with the reward's settings, and its instance is the reward; any other callable is a reward itself.
"""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:.+)?")
"""owner/name or owner/name:file"""
OPTIONS = ("weight", "cache", "timeout", "reward", "frames")
"""Settings that every reward has; none of them reaches its class."""
RESERVED = ("mean", "num_images", "prompt", "row", "std", "tag")
"""Names that no reward can have: a run logs reward_mean and reward_std of the sum, and reports have these columns."""
Spec = str | Reward | Mapping[str, Any]


def get_reward(reward: Spec) -> WeightedReward:
    """The reward of a description.

    Args:
        reward: one of
            - a name of `REWARDS` or of an installed package, or "module:attribute";
            - several with weights: "pickscore=1.0,ocr=0.5";
            - a mapping, or its JSON, from names to weights or to settings: `{"pickscore": 0.5, "remote": {"weight":
              1.0, "urls": ["http://127.0.0.1:18080"]}}`. Every reward has the settings `weight` (default 1), `cache`
              (number of scores to keep, by image, prompt and metadata), `timeout` (seconds for a call; null: no limit),
              `frames` (number of frames of a video whose scores are averaged; the rewards of this package score images
              alone) and `reward` (name, "module:attribute" or callable, if the key is a name of your own); the others
              go to its class;
            - a callable.

    Returns:
        The weighted sum; each reward is logged under its name. The same name with the same settings is loaded once per
        process, since weights are large.

    Raises:
        ValueError: if a name is unknown, reserved or cannot be imported, or a reward refuses its settings.
    """
    if isinstance(reward, WeightedReward):
        return reward
    if callable(reward):
        return WeightedReward({name_of(reward): reward}, {name_of(reward): 1.0})
    rewards, weights, timeouts, of_images = {}, {}, {}, []
    for name, entry in _entries(reward).items():
        require(name not in RESERVED, "get_reward", "name", f"none of {', '.join(RESERVED)}, since logs use them", name)
        settings = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weights[name] = _number(name, "weight", settings.pop("weight", 1.0))
        if "timeout" in settings:
            timeout = settings.pop("timeout")
            timeouts[name] = None if timeout is None else _number(name, "timeout", timeout)
        num_remembered, num_frames = settings.pop("cache", None), settings.pop("frames", None)
        target = settings.pop("reward", name)
        if not callable(target) and not isinstance(target, str):
            fail("get_reward", f"reward of {name}", 'a name, "module:attribute" or a callable', repr(target))
        if isinstance(target, str):
            _require_one_meaning(name, target, entry)
            made = _load(target, json.dumps(settings, sort_keys=True, default=str))
        else:
            _require_none(name, settings)
            made = target
        rewards[name] = made if num_remembered is None else _remembering(made, num_remembered)
        if num_frames is not None:
            rewards[name] = FramesReward(rewards[name], num_frames)
        elif isinstance(target, str) and target in REWARDS:
            of_images.append(name)
    return WeightedReward(rewards, weights, timeouts, of_images)


def code_in(reward: Spec) -> list[str]:
    """Names of the code outside the package that `get_reward` would import, and so run.

    Args:
        reward: a description as in `get_reward`.

    Returns:
        Each "module:attribute" in it.

    Raises:
        ValueError: for a text that is no description.
    """
    if callable(reward):
        return []
    targets = [
        entry.get("reward", name) if isinstance(entry, Mapping) else name for name, entry in _entries(reward).items()
    ]
    return [target for target in targets if isinstance(target, str) and target not in REWARDS and ":" in target]


def _entries(reward: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Name -> weight or settings."""
    if isinstance(reward, Mapping):
        return reward
    is_text = isinstance(reward, str) and bool(reward.strip())
    require(is_text, "get_reward", "reward", "a name, a mapping or a callable", repr(reward))
    if reward.lstrip().startswith("{"):
        try:
            return parsed_json(reward)
        except (ValueError, RecursionError) as error:
            fail("get_reward", "reward", "JSON if it begins with {", f"{shortened(repr(reward))}: {error}")
    found: dict[str, Any] = {}
    for part in reward.split(","):
        name, separator, weight = (text.strip() for text in part.partition("="))
        if not name or name in found or (separator and not weight):
            fail("get_reward", "reward", 'like "a=1.0,b=0.5" with each name once', repr(reward))
        found[name] = weight if separator else 1.0
    return found


def _require_one_meaning(name: str, target: str, entry: object) -> None:
    """Refuses a setting that would stay here although a class of the user's has one of this name."""
    found = _imported(target)
    if isinstance(entry, Mapping) and isinstance(found, type):
        taken = [option for option in OPTIONS if option in entry and option in inspect.signature(found).parameters]
        expected = f"named otherwise in {target}, since every reward has a setting of this name"
        require(not taken, "get_reward", f"{' and '.join(taken)} of {name}", expected, dict(entry))


def _require_none(name: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings that nothing would read, since the reward is no class that is made from them."""
    require(not settings, "get_reward", f"settings of {name}", "none", ", ".join(settings))


def _number(name: str, setting: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        fail("get_reward", f"{setting} of {name}", "a number", repr(value))


_memories: dict[tuple[int, int], CachedReward] = {}


def _remembering(reward: Reward, num_entries: int) -> CachedReward:
    """One cache per reward, however often its description is read."""
    # By identity: a user's callable need not be hashable. The cache keeps it alive, so that its id is not reused.
    made = CachedReward(reward, num_entries)
    return _memories.setdefault((id(reward), num_entries), made)


@functools.cache
def _load(target: str, settings: str) -> Reward:
    """The reward for a name or "module:attribute" with its settings as JSON."""
    found, options = _imported(target), json.loads(settings)
    if not isinstance(found, type):
        _require_none(target, options)
        return found
    _require_settings(target, found, options)
    with without_retries(*_hub_names(found, options)) as unreachable:
        try:
            return found(**options)
        except ValueError:  # the reward has refused a setting, by name
            raise
        except (Exception, SystemExit) as error:
            _refuse_to_load(target, error, unreachable)


def _hub_names(kind: type, options: Mapping[str, Any]) -> list[str]:
    """What a reward with these settings may load from the hub: owner/name or owner/name:file."""
    try:
        parameters = inspect.signature(kind).parameters
    except ValueError:  # a class of C
        return []
    values = [options.get(name, parameter.default) for name, parameter in parameters.items()]
    return [value for value in values if isinstance(value, str) and HUB_NAME.fullmatch(value)]


def _require_settings(target: str, kind: type, options: Mapping[str, Any]) -> None:
    """Refuses a reward that is named without the settings that it cannot do without."""
    try:
        parameters = inspect.signature(kind).parameters
    except ValueError:  # a class of C says itself what it lacks
        return
    for name, parameter in parameters.items():
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and parameter.default is parameter.empty and name not in options:
            form = json.dumps({target: {name: "..."}})
            fail("get_reward", f"settings of {target}", f"given as in {form}", f"no {name!r}")


def _imported(target: str) -> Callable[..., Any]:
    found = find_code("get_reward", "reward", target, REWARDS, extensions.REWARDS)
    got = f'"{REWARDS.get(target, target)}" of {type(found)}'
    require(callable(found), "get_reward", "reward", "a callable or a class of one", got)
    return found


def _refuse_to_load(target: str, error: BaseException, unreachable: str | None = None) -> NoReturn:
    """Names the reward whose own code failed; SystemExit would end the run as if it were complete."""
    kind = "" if isinstance(error, (ImportError, AttributeError, OSError)) else f"{type(error).__name__}: "
    place = "" if unreachable is None else f"the Hugging Face hub cannot be reached ({unreachable}): "
    fail("get_reward", "reward", "one that loads", f"{target}: {place}{kind}{one_line(error)}")
