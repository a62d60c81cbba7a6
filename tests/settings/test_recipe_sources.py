"""docs/recipes.md against the recipes: every value that is not a default has a line with its source."""

from __future__ import annotations

import json
import re

import pytest
from support import ROOT

from tempflow_fast.settings.recipes import IN_THEIR_SPIRIT, PUBLIC, get_recipe
from tempflow_fast.settings.run import TrainConfig, differences

MODELS = {
    **{"sd35m": "Stable Diffusion 3.5 Medium", "flux": "FLUX.1-dev", "qwen": "Qwen-Image", "sd35l": "SD3.5-Large"},
    **{"flux2": "FLUX.2 and Z-Image", "z": "FLUX.2 and Z-Image"},
}
ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \| ([\w, -]+) \| (.+) \|$", re.MULTILINE)
SOURCE = re.compile(r"([TF] (dgx\.py, \w+|[\w.]+\.(py|md))|X \w+/\w+\.(yaml|py)|card|ours)")


def section(name: str) -> str:
    """The part of the page about the model of a recipe."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    return page.split(f"\n## {MODELS[name.split('-')[0]]}\n")[1].split("\n## ")[0]


def lines(name: str) -> dict[str, object]:
    """Setting -> value on the page for a recipe; every line has a source."""
    found = {}
    for setting, value, recipes, source in ROW.findall(section(name)):
        if recipes == "all" or name in recipes.split(", "):
            assert setting not in found, setting
            assert all(SOURCE.match(part) for part in source.split("; ")), (setting, source)
            found[setting] = json.loads(value)
    return found


def plain(config: TrainConfig) -> dict[str, object]:
    """The settings as JSON has them."""
    return json.loads(json.dumps(config.flat()))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_value_has_a_line_with_its_source(name):
    config, page = get_recipe(name), lines(name)
    settings = plain(config)
    assert page == {key: settings[key] for key in page}
    assert set(differences(TrainConfig(), config)) <= set(page)
    assert "docs/recipes.md" in PUBLIC[name].__doc__


@pytest.mark.parametrize("name", IN_THEIR_SPIRIT)
def test_recipes_of_ours_say_so_and_how_they_differ_from_the_nearest(name):
    assert "Source: ours" in IN_THEIR_SPIRIT[name].__doc__
    bases = re.findall(r"`([a-z0-9-]+)`", re.search(r"^As (.+), but for:$", section(name), re.MULTILINE)[1])
    (base,) = [base for base in bases if base.split("-")[-1] == name.split("-")[-1]]
    settings = plain(get_recipe(name))
    assert lines(name) == {setting: settings[setting] for setting in differences(get_recipe(base), get_recipe(name))}
