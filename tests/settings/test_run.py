"""The settings of a run: as JSON, by name, and their ranges."""

from __future__ import annotations

import json

import pytest

from tempflow_fast.settings.recipes import RECIPES, get_recipe
from tempflow_fast.settings.run import TrainConfig, differences


@pytest.mark.parametrize("name", RECIPES)
def test_settings_survive_json_and_differ_by_name(name):
    config = get_recipe(name)
    assert TrainConfig.from_json(config.to_json()) == config
    other = config.with_settings(seed=3, clip_range=0.5, betas=(0.1, 0.2))
    assert differences(config, other).keys() == {"seed", "clip_range", "betas"}
    names = [setting for group in json.loads(config.to_json()).values() for setting in group]
    assert len(names) == len(set(names)), "a name in two groups could not be set on the command line"
    with pytest.raises(ValueError, match=r"got 'clip_rang' \(did you mean clip_range"):
        config.with_settings(clip_rang=1)
    with pytest.raises(ValueError, match="a setting in grpo must be one of"):
        TrainConfig.from_json('{"grpo": {"nope": 1}}')


def test_a_setting_that_json_has_twice_is_refused():
    with pytest.raises(ValueError, match="must be the JSON of a config, got a key twice"):
        TrainConfig.from_json('{"task": {"seed": 1, "seed": 2}}')


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0},
        {"betas": (0.9, 1.0)},
        {"ema_decay": 1.0},
        {"learning_rate_decay": 1.5},
        {"eval_images": 0},
        {"lora_rank": 0},
        {"minutes": 0},
        {"num_checkpoints": 0},
        {"seed": 2**31},
        {"memory_limit": 0},
    ],
)
def test_settings_out_of_range_are_named(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f": {name} must be "):
        get_recipe("shapes").with_settings(**settings)
