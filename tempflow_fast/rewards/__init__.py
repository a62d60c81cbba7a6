"""Rewards: one file each, found by name, summed with weights."""

from __future__ import annotations

from .background import BackgroundScorer
from .base import Reward, RewardError, Scores
from .registry import REWARDS, get_reward
from .weighted import WeightedReward

__all__ = ["REWARDS", "BackgroundScorer", "Reward", "RewardError", "Scores", "WeightedReward", "get_reward"]
