"""Settings from a file: what a run directory holds, or a part of it that somebody has written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tempflow_fast.settings.file import read_values, with_values
from tempflow_fast.settings.recipes import RECIPES, get_recipe
from tempflow_fast.settings.run import TrainConfig

BASE = get_recipe("sd35m-pickscore")


def read(path: Path, text: str, base: TrainConfig = BASE) -> TrainConfig:
    path.write_text(text, encoding="utf-8")
    return with_values(base, read_values(path), str(path))


@pytest.mark.parametrize("name", ["run.json", "run.yaml", "run"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_settings_of_a_run_are_read_whole(tmp_path, recipe, name):
    wanted = get_recipe(recipe).with_settings(adv_clip=float("inf"), prompts="Käse.txt")
    if name == "run.json" or "Infinity" not in wanted.to_json():
        assert read(tmp_path / name, wanted.to_json()) == wanted


def test_a_part_leaves_the_rest_as_it_was(tmp_path):
    text = "grpo: {branch_steps: [1, 2], clip_range: 1e-3}\noptimizer:\n  learning_rate: 3E-5\n"
    found = read(tmp_path / "run.yaml", text)
    assert found == BASE.with_settings(branch_steps=(1, 2), clip_range=1e-3, learning_rate=3e-5)
    assert read(tmp_path / "empty.yaml", "{}") == BASE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimzer: {}", "a setting in the file must be one of .*, got 'optimzer' .did you mean optimizer"),
        (
            "optimizer: {learning_rat: 1}",
            "a setting in optimizer must be one of .*learning_rat.* .did you mean learning_rate",
        ),
        ("learning_rate: 0.1", "learning_rate must be in its group, optimizer, got at the top"),
        ("optimizer: {learning_rate: yes}", "learning_rate must be a number, got True"),
        ("optimizer: {learning_rate: -1}", "learning_rate must be positive"),
        ("optimizer: 5", "optimizer must be an object, got 5"),
        ("- 1", "the settings must be an object"),
        ("", "the settings must be an object"),
        ("{", "config must be a readable file of YAML or JSON"),
        ("optimizer: {learning_rate: 1, learning_rate: 2}", "'learning_rate' is there twice"),
        ("policy: {model: a}\npolicy: {model: b}", "'policy' is there twice"),
        ("task: &a {seed: 1}\npolicy: *a", "a reference"),
        ("task: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "run.yaml", text)
    assert "run.yaml" in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("none.yaml", "none.json"):
        with pytest.raises(ValueError, match=f"{name}.*No such file"):
            read_values(tmp_path / name)
