"""The settings that hold where the command line sets none: of a recipe, a file, or the family of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..choices import DEFAULT_RECIPE, EMBEDDED_MODEL
from ..settings.families import own_settings
from ..settings.file import read_values, with_values
from ..settings.recipes import get_recipe
from ..settings.run import TrainConfig


@dataclass(frozen=True)
class Base:
    """Settings, and where they come from."""

    settings: TrainConfig
    recipe: str | None
    """The recipe that they come from, or the nearest one; "": the defaults; None: a run's own."""
    file: Path | None = None
    """The file of settings, or the run, that gives some of them."""
    in_file: frozenset[str] = frozenset()
    """Names of these settings."""
    is_own: bool = False
    """Whether the model is one that no recipe names: its prompts and reward must be given."""


def base_settings(recipe: str | None = None, model: str | None = None, file: Path | None = None) -> Base:
    """Returns the settings of a recipe, or of the family of a model, with those of a file.

    Args:
        recipe: its name; None: by the model.
        model: the model that the command line names; None: that of the file, or else the packaged one.
        file: of settings, YAML or JSON; None: no file.

    Raises:
        ValueError: for a recipe, file or setting that does not exist, or a model that cannot be read.
    """
    values = {} if file is None else read_values(file)
    groups = [group for group in values.values() if isinstance(group, dict)]
    given = {name: value for group in groups for name, value in group.items()}
    named = model or str(given.get("model") or EMBEDDED_MODEL)
    is_own = recipe is None and named != EMBEDDED_MODEL
    if is_own:
        nearest, settings = own_settings(named)
        recipe = nearest or ""
    else:
        recipe = DEFAULT_RECIPE if recipe is None else recipe
        settings = get_recipe(recipe)
    settings = settings if file is None else with_values(settings, values, str(file))
    return Base(settings, recipe, file, frozenset(given), is_own)
