"""docs/recipes.md against the recipes: every value that is not a default has a line with its source."""

from __future__ import annotations

import json
import re

import pytest
from support import ROOT

from tempflow_fast.settings.recipes import IN_THEIR_SPIRIT, PUBLIC, get_recipe
from tempflow_fast.settings.run import TrainConfig, differences

MODELS = {"sd35m": "Stable Diffusion 3.5 Medium", "flux": "FLUX.1-dev", "qwen": "Qwen-Image"}
ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \| ([\w, -]+) \| (.+) \|$", re.MULTILINE)
SOURCE = re.compile(r"([TF] (dgx\.py, \w+|[\w.]+\.(py|md))|ours)")


def lines(name: str) -> dict[str, tuple[object, str]]:
    """Setting -> (value, source) on the page for a recipe."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    section = page.split(f"\n## {MODELS[name.split('-')[0]]}\n")[1].split("\n## ")[0]
    found = {}
    for setting, value, recipes, source in ROW.findall(section):
        if recipes == "all" or name in recipes.split(", "):
            assert setting not in found, setting
            found[setting] = (json.loads(value), source)
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_every_value_has_a_line_with_its_source(name):
    config, page = get_recipe(name), lines(name)
    settings = json.loads(json.dumps(config.flat()))
    assert {setting: value for setting, (value, _) in page.items()} == {key: settings[key] for key in page}
    assert set(differences(TrainConfig(), config)) <= set(page)
    for setting, (_, source) in page.items():
        assert all(SOURCE.match(part) for part in source.split("; ")), (setting, source)
    assert "docs/recipes.md" in PUBLIC[name].__doc__


@pytest.mark.parametrize("name", IN_THEIR_SPIRIT)
def test_recipes_of_ours_say_so(name):
    assert "Source: ours" in IN_THEIR_SPIRIT[name].__doc__
    medium = get_recipe(name.replace("sd35l", "sd35m"))
    assert set(differences(medium, get_recipe(name))) == {
        *("model", "guidance_scale", "gradient_checkpointing", "micro_batch", "max_batch")
    }
