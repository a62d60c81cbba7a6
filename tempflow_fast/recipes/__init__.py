"""Recipes: named settings of a training run, one function in one file each."""

from __future__ import annotations

from ..train_config import TrainConfig
from .shapes import shapes

RECIPES = {"shapes": shapes}

__all__ = ["RECIPES", "get_recipe", "shapes"]


def get_recipe(name: str) -> TrainConfig:
    """The settings of a recipe; ValueError for an unknown name."""
    if name not in RECIPES:
        raise ValueError(f"get_recipe: name must be one of {', '.join(sorted(RECIPES))}, got {name!r}")
    return RECIPES[name]()
