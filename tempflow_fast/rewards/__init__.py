"""Rewards: one file each, found by name."""

from __future__ import annotations

from importlib import import_module

from .base import Reward

REWARDS = {
    "shapes": "tempflow_fast.shapes.checker:reward",
    "shapes_strict": "tempflow_fast.rewards.shapes:strict",
}
"""Reward name -> "module:function", imported on first use: a reward's libraries load only where it is asked for."""

__all__ = ["REWARDS", "Reward", "get_reward"]


def get_reward(reward: str | Reward) -> Reward:
    """The reward for a name of `REWARDS`, for "module:function", or the callable itself.

    Raises:
        ValueError: if the name is neither, or the module or the function does not exist.
    """
    if callable(reward):
        return reward
    module_name, separator, function_name = REWARDS.get(reward, reward).partition(":")
    if not separator:
        known = ", ".join(sorted(REWARDS))
        raise ValueError(f'get_reward: reward must be one of {known} or "module:function", got "{reward}"')
    try:
        return getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'get_reward: cannot load "{module_name}:{function_name}": {error}') from error
