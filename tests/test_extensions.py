"""Rewards, recipes and policies of others: by module:attribute, and by entry points of an installed package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tempflow_fast import extensions
from tempflow_fast.cli import main
from tempflow_fast.rewards import get_reward
from tempflow_fast.run.load import find_model
from tempflow_fast.settings.recipes import get_recipe

CODE = """
from dataclasses import replace
from tempflow_fast.policies import FAMILIES, SD3Policy
from tempflow_fast.settings.recipes import get_recipe

def dark(images, prompts, metadata):
    return -images.mean((1, 2, 3))

def calm():
    "Calm. Source: nobody."
    return get_recipe("shapes").with_settings(learning_rate=1e-6)

def no_recipe():
    return {"learning_rate": 1}

def fails():
    raise KeyError("no such thing")

class Own(SD3Policy):
    family = replace(FAMILIES["StableDiffusion3Pipeline"], pipeline="OwnPipeline")
"""
GIVEN = """
[tempflow_fast.rewards]
{name} = code_of_others:dark
[tempflow_fast.recipes]
calm = code_of_others:calm
[tempflow_fast.policies]
OwnPipeline = code_of_others:Own
"""


def install(place: Path, name: str = "dark", package: str = "others") -> None:
    """What pip leaves of a package: its modules, and a directory that says what it gives."""
    (place / "code_of_others.py").write_text(CODE)
    about = place / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(GIVEN.format(name=name))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "code_of_others", raising=False)
    extensions.installed.cache_clear()
    yield tmp_path
    extensions.installed.cache_clear()


@pytest.fixture
def model(place):
    (place / "model").mkdir()
    (place / "model" / "model_index.json").write_text(json.dumps({"_class_name": "OwnPipeline"}))
    return place / "model"


def test_an_installed_package_gives_a_reward_a_recipe_and_a_policy(place, model, capsys):
    install(place)
    assert get_reward("dark")(torch.ones(1, 3, 2, 2), ["x"], [{}]).tolist() == [-1.0]
    assert get_recipe("calm").optimizer.learning_rate == 1e-6
    assert find_model(model)[1].__name__ == "Own"
    assert main(["recipes"]) == 0
    assert "\ncalm\n    Calm. Source: nobody.\n" in capsys.readouterr().out


def test_code_is_named_where_nothing_is_installed(place, model):
    (place / "code_of_others.py").write_text(CODE)
    assert get_recipe("code_of_others:calm").optimizer.learning_rate == 1e-6
    assert find_model(model, "code_of_others:Own")[1].family.pipeline == "OwnPipeline"
    with pytest.raises(
        ValueError, match=r"load_policy: model must be one of AuraFlowPipeline, .* policy, such as module:Class, got"
    ):
        find_model(model)


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda model: get_recipe("calms"), r"name must be one of calm, .* got 'calms' \(did you mean calm"),
        (lambda model: get_recipe("code_of_others:none"), "name must be one that loads, got .* has no attribute"),
        (lambda model: get_recipe("code_of_others:no_recipe"), "must be a TrainConfig, got a dict"),
        (lambda model: get_recipe("code_of_others:fails"), "that of a recipe, got 'code_of_others:fails': KeyError"),
        (
            lambda model: find_model(model, "code_of_others:dark"),
            "policy must be a class with the base DiffusersPolicy",
        ),
        (lambda model: find_model(model, "FluxPipelin"), r"policy must be one of .* or \"module:Class\", got"),
    ],
)
def test_what_is_none_of_these_is_named(place, model, find, message):
    install(place)
    with pytest.raises(ValueError, match=message):
        find(model)


def test_a_name_has_one_meaning(place):
    install(place, name="shapes")
    with pytest.raises(ValueError, match="one meaning, got 'shapes', which code_of_others:dark gives as well"):
        get_reward("shapes")


def test_two_packages_cannot_give_one_name(place):
    install(place)
    install(place, package="more")
    assert get_recipe("calm")  # the same code
    entries = place / "more-1.0.dist-info" / "entry_points.txt"
    entries.write_text(entries.read_text().replace("code_of_others:dark", "code_of_others:calm"))
    extensions.installed.cache_clear()
    with pytest.raises(ValueError, match="of one package for each name, got 'dark' for"):
        get_reward("dark")
