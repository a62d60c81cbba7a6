"""Rewards by name, by description and as callables, each loaded once."""

import json
import subprocess
import sys

import pytest
import torch
from support.levels import HERE, NO_METADATA, TEXTS, images, level

from tempflow_fast.rewards import REWARDS, get_reward
from tempflow_fast.shapes import world
from tempflow_fast.shapes.world import Shape

TRIPLED = {"reward": f"{HERE}:Scaled", "scale": 3}


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        (f"{HERE}:level", {f"{HERE}:level": 1.0}),
        (f"{HERE}:level=0.5, {HERE}:doubled=-2", {f"{HERE}:level": 0.5, f"{HERE}:doubled": -2.0}),
        (
            {f"{HERE}:level": 0.25, "mine": {"reward": f"{HERE}:Scaled", "scale": 3}},
            {f"{HERE}:level": 0.25, "mine": 1.0},
        ),
        (json.dumps({"mine": {**TRIPLED, "weight": 2}}), {"mine": 2.0}),
        (level, {"level": 1.0}),
        ({"shown": {"reward": level, "weight": 3}}, {"shown": 3.0}),
    ],
)
def test_every_form_of_a_reward_is_scored_by_its_weights(spec, weights):
    reward = get_reward(spec)
    assert reward.weights == weights
    scores = reward.score(images(), TEXTS, NO_METADATA)
    factors = {f"{HERE}:level": 1.0, f"{HERE}:doubled": 2.0, "mine": 3.0, "level": 1.0, "shown": 1.0}
    expected = torch.arange(8, dtype=torch.float64) / 8
    for name, part in scores.parts.items():
        assert torch.equal(part, factors[name] * expected)
    total = sum(weights[name] * factors[name] for name in weights) * expected
    assert torch.allclose(scores.total, total, atol=1e-12)
    assert torch.equal(reward(images(), TEXTS, NO_METADATA), scores.total)
    assert get_reward(reward) is reward


def test_the_same_name_and_settings_are_loaded_once():
    spec = {"mine": {"reward": f"{HERE}:Scaled", "scale": 7}}
    assert get_reward(spec).rewards["mine"] is get_reward(spec).rewards["mine"]
    other = get_reward({"mine": {"reward": f"{HERE}:Scaled", "scale": 8}})
    assert other.rewards["mine"] is not get_reward(spec).rewards["mine"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shaeps", r"one of aesthetic, .* or \"module:function\", got 'shaeps' \(did you mean shapes"),
        ("no.such.module:thing", 'reward must be one that loads, got "no.such.module:thing": No module'),
        (f"{HERE}:nothing", "reward must be one that loads, got .* has no attribute"),
        (f"{HERE}:TEXTS", "reward must be a callable or a class of one, got"),
        ("shapes=much", "weight of shapes must be a number"),
        ("shapes=inf", "weight of shapes must be finite, got inf"),
        ("shapes=0", "weights must be different from 0 for at least one reward"),
        ("shapes,shapes", "with each name once"),
        ("{shapes", "reward must be JSON if it begins with {"),
        ('{"shapes": 1, "shapes": 0.5}', r"reward must be JSON .*: a key twice: \['shapes', 'shapes'\]"),
        ('{"shapes": {"weight": 1, "weight": 2}}', "reward must be JSON .*: a key twice"),
        ({}, "weights must be different from 0 for at least one reward"),
        (3, "must be a name, a mapping or a callable, got 3"),
        ({"shapes": {"device": "cpu"}}, "settings of shapes must be none, got device"),
        ({"x": {"reward": level, "weight": 2, "foo": 3}}, "settings of x must be none, got foo"),
        ({"mean": {"reward": level}, "shapes": 1}, "name must be none of mean, .* since logs use them, got mean"),
        ({"num_images": {"reward": level}}, "name must be none of mean, num_images, .* got num_images"),
        ({"mine": {"reward": f"{HERE}:Scaled", "sclae": 1}}, "must be one that loads, got .* unexpected keyword"),
        ({"shapes": {"cache": 0}}, "num_entries must be >= 1"),
        ({"shapes": {"cache": "many"}}, "num_entries must be an integer, got 'many'"),
        ({"shapes": {"timeout": 0}}, "timeout of shapes must be positive or None, got 0.0"),
        ({"m": {"reward": f"{HERE}:Slow", "timeout": 3}}, "timeout of m must be named otherwise in .*:Slow"),
        ({"shapes": {"timeout": "soon"}}, "timeout of shapes must be a number, got 'soon'"),
    ],
)
def test_a_wrong_reward_is_refused_with_a_sentence(spec, message):
    with pytest.raises(ValueError, match=message):
        get_reward(spec)


def test_every_registered_reward_can_be_imported():
    from tempflow_fast.rewards.registry import _imported

    assert all(callable(_imported(name)) for name in REWARDS)


def test_a_module_beside_the_user_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text("def ones(images, prompts, metadata):\n    return [1] * len(images)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert get_reward("my_own_rewards:ones")(images(), TEXTS, NO_METADATA).tolist() == [1] * 8


def test_shapes_is_a_reward_like_any_other():
    entry = {"include": [{"class": "circle", "count": 1}]}
    drawn = world.render([(Shape("circle", "red", 8, 8),), (Shape("cross", "red", 8, 8),)])
    scores = get_reward("shapes=1,shapes_strict=2").score(drawn, ["a circle"] * 2, [entry] * 2)
    assert scores.parts["shapes_strict"].tolist() == [1, 0]
    assert scores.parts["shapes"][0] == 1 > scores.parts["shapes"][1]


@pytest.mark.slow
def test_no_library_of_a_reward_is_loaded_before_it_is_asked_for():
    code = (
        "import sys, tempflow_fast.rewards; print({'transformers', 'PIL', 'onnxruntime', 'rapidocr'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
