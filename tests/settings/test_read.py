"""Settings from JSON have the types that their fields declare."""

from __future__ import annotations

import re

import pytest

from tempflow_fast.settings.read import read_settings
from tempflow_fast.settings.run import TrainConfig


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the settings must be an object, got []"),
        ({"grpo": 3}, "grpo must be an object, got 3"),
        ({"grpo": {"guided_training": "false"}}, "GRPOConfig: guided_training must be True or False, got 'false'"),
        ({"grpo": {"num_steps": 5.5}}, "GRPOConfig: num_steps must be an integer, got 5.5"),
        ({"grpo": {"branch_steps": [0, "1"]}}, "GRPOConfig: branch_steps must be a tuple"),
        ({"optimizer": {"optimizer": "sgd"}}, "OptimizerConfig: optimizer must be one of adamw, adamw_8bit, got 'sgd'"),
        ({"optimizer": {"learning_rate": "1e-3"}}, "OptimizerConfig: learning_rate must be a number, got '1e-3'"),
        ({"optimizer": {"betas": [0.9]}}, "OptimizerConfig: betas must be a tuple of 2"),
        ({"task": {"seed": True}}, "TaskConfig: seed must be an integer, got True"),
        ({"task": {"seed": -1}}, "TaskConfig: seed must be in 0..2^31-1, got -1"),
        ({"task": {"sed": 1}}, "a setting in task must be one of"),
        ({"tasks\x1b": {}}, r"got 'tasks\\x1b' (did you mean task?)"),
    ],
)
def test_errors_name_the_source_and_the_setting(data, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_settings(TrainConfig, data, "run/config.json")
    assert str(caught.value).startswith("run/config.json: ")


def test_a_missing_field_has_its_default_and_lists_are_tuples():
    found = read_settings(TrainConfig, {"optimizer": {"betas": [0, 0.5]}, "task": {}}, "file")
    assert found == TrainConfig().with_settings(betas=(0, 0.5))
