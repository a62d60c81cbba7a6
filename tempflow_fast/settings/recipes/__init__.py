"""Recipes: named settings of a training run, one file per model.

A recipe is a function without arguments that returns a `TrainConfig`; its docstring is what `tempflow-fast recipes`
prints. To add one, write a function and add a line to `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable

from ... import extensions
from ...errors import fail, instance, require
from ...extensions import find_code
from ..run import TrainConfig
from .fast import SOURCE as FAST_SOURCE
from .fast import fast
from .flux import flux_hps, flux_pickscore
from .newer import flux2_klein_pickscore, flux2_pickscore, z_image_pickscore
from .qwen_image import qwen_image_pickscore
from .sd35l import sd35l_ocr, sd35l_pickscore
from .sd35m import sd35m_geneval, sd35m_ocr, sd35m_pickscore
from .shapes import shapes

Recipe = Callable[[], TrainConfig]
PUBLIC: dict[str, Recipe] = {
    "sd35m-geneval": sd35m_geneval,
    "sd35m-pickscore": sd35m_pickscore,
    "sd35m-ocr": sd35m_ocr,
    "flux-pickscore": flux_pickscore,
    "flux-hps": flux_hps,
    "qwen-image-pickscore": qwen_image_pickscore,
}
"""Settings that somebody else has published, see docs/recipes.md."""
IN_THEIR_SPIRIT: dict[str, Recipe] = {
    "sd35l-pickscore": sd35l_pickscore,
    "sd35l-ocr": sd35l_ocr,
    "flux2-pickscore": flux2_pickscore,
    "flux2-klein-pickscore": flux2_klein_pickscore,
    "z-image-pickscore": z_image_pickscore,
}
"""The same for models that these scripts do not train, see docs/recipes.md."""


def _fast_form(name: str, recipe: Recipe) -> Recipe:
    def form() -> TrainConfig:
        return fast(recipe())

    form.__doc__ = f"As {name}, with fewer branch steps, and tails as short as a gate allows.\n\n{FAST_SOURCE}"
    return form


RECIPES: dict[str, Recipe] = {
    "shapes": shapes,
    **PUBLIC,
    **IN_THEIR_SPIRIT,
    **{f"{name}-fast": _fast_form(name, recipe) for name, recipe in (PUBLIC | IN_THEIR_SPIRIT).items()},
}


def get_recipe(name: str) -> TrainConfig:
    """Returns the settings of a recipe.

    Args:
        name: a key of `RECIPES`, the name of an entry point of the group tempflow_fast.recipes, or "module:function".

    Raises:
        ValueError: for an unknown name, which suggests the nearest ones, or code that fails or returns anything else.
    """
    recipe = find_recipe(name)
    try:
        found = recipe()
    except Exception as error:  # of the user's code
        fail("get_recipe", "name", "that of a recipe", f"{name!r}: {type(error).__name__}: {error}")
    instance("get_recipe", f"what {name!r} returns", found, TrainConfig, "a TrainConfig")
    return found


def find_recipe(name: str) -> Recipe:
    """Returns a recipe itself, whose docstring says where its settings come from.

    Args:
        name: as in `get_recipe`.

    Raises:
        ValueError: for an unknown name, or code that cannot be imported.
    """
    recipe = find_code("get_recipe", "name", name, RECIPES, extensions.RECIPES)
    require(callable(recipe), "get_recipe", "name", "that of a function without arguments", repr(name))
    return recipe
