"""Methods by name: what each expands to, in code, on the page and on the command line."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from support import ROOT
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.cli import _parse
from tempflow_fast.commands.signal import changed
from tempflow_fast.settings.methods import SETTINGS, method_settings, with_method
from tempflow_fast.settings.recipes import RECIPES, get_recipe

ROW = re.compile(r"^\| `(\w+)` \|.*\| (?:`([^`]+)`|the defaults) \|$", re.MULTILINE)


def test_the_page_has_every_method_with_its_settings():
    rows = dict(ROW.findall((ROOT / "docs" / "methods.md").read_text()))
    assert rows.keys() == SETTINGS.keys()
    for name, text in rows.items():
        expected = changed(GRPOConfig(), text) if text else GRPOConfig()
        assert with_method(GRPOConfig(), name) == expected, name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_recipe_takes_every_method_with_its_images_and_twice_is_once(name, recipe):
    config = get_recipe(recipe).grpo
    once = with_method(config, name)
    assert with_method(once, name) == once
    assert once.num_seeds * once.num_branches == config.num_seeds * config.num_branches
    assert not once.has_cheap_tails
    changed_settings = {key for key, value in vars(once).items() if value != vars(config)[key]}
    assert changed_settings <= {*method_settings(config, name), "tail_steps", "gate_every"}


def test_trajectories_without_branches_get_branches_again():
    chains = with_method(GRPOConfig(num_seeds=4, num_branches=(2, 3, *(6,) * 7)), "flow_grpo")
    assert (chains.num_seeds, chains.num_branches) == (24, 1)
    assert with_method(chains, "tempflow") == GRPOConfig()
    few = with_method(replace(chains, num_seeds=3), "tempflow")
    assert (few.num_seeds, few.num_branches) == (1, 3)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_method_trains(name):
    config = with_method(GRPOConfig(num_steps=4, num_seeds=2, num_branches=2, num_updates=1), name)
    policy = TinyPolicy()
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    metrics = grpo_step(policy, PROMPTS, brightness, sgd(policy), config, seed=3)
    assert metrics["grad_norm"] > 0
    assert any((old != new).any() for old, new in zip(before, policy.parameters(), strict=True))


def test_equal_weights_reach_the_loss():
    policy = TinyPolicy()
    weighted, equal = (GRPOConfig(num_steps=4, noise_weighting=choice).table(policy) for choice in (True, False))
    assert equal.noise_weight.tolist() == [1, 1, 1, 0]
    assert weighted.noise_weight.tolist() != equal.noise_weight.tolist()
    gradients = []
    for choice in (True, False):
        policy = TinyPolicy()
        config = GRPOConfig(num_steps=4, num_updates=1, noise_weighting=choice)
        gradients.append(grpo_step(policy, PROMPTS, brightness, sgd(policy), config, seed=3)["grad_norm"])
    assert gradients[0] != gradients[1]


def test_options_replace_the_method_and_the_method_the_recipe(tmp_path):
    options = ["--method", "flow_grpo", "--num-seeds", "8"]
    train = _parse(["train", "--output", str(tmp_path / "run"), "--recipe", "sd35m-geneval", *options])
    recipe = get_recipe("sd35m-geneval")
    assert train.settings.grpo == replace(with_method(recipe.grpo, "flow_grpo"), num_seeds=8)
    assert train.settings.policy == recipe.policy


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"with_method: name must be one of .* \(did you mean flow_grpo"):
        with_method(GRPOConfig(), "flow-grpo")
