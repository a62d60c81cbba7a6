"""Which settings take their gradients from another one's iterations, and that these are the same gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness

from tempflow_fast import GRPOConfig
from tempflow_fast.grpo.sketch import Sketch
from tempflow_fast.rewards import get_reward
from tempflow_fast.signal.contained import part_of, sources
from tempflow_fast.signal.sample import sample

ALL = GRPOConfig(num_steps=6, num_seeds=2, num_updates=1)
SOME = {"branch_steps": (3, 1)}


@pytest.mark.parametrize(
    ("changes", "contained"),
    [
        (SOME, True),
        ({**SOME, "num_branches": (6, 6), "tail_steps": (2, 4)}, True),
        ({**SOME, "max_batch": 3, "num_updates": 2}, True),
        ({}, False),
        ({**SOME, "tail_steps": 2}, False),
        ({**SOME, "num_branches": 4}, False),
        ({**SOME, "noise_level": 0.5}, False),
        ({**SOME, "branches_per_trajectory": 1}, False),
        ({"branch_steps": (1, 5)}, False),
        ({**SOME, "trunk": "sde", "num_branches": 1, "group": "prompt"}, False),
    ],
)
def test_a_setting_is_part_of_another(changes, contained):
    found = sources({"all": ALL, "other": replace(ALL, **changes)})
    assert found == {"all": "all", "other": "all" if contained else "other"}


def test_the_order_of_settings_does_not_matter():
    some, fewer = replace(ALL, **SOME), replace(ALL, branch_steps=(1,))
    assert set(sources({"fewer": fewer, "some": some, "all": ALL}).values()) == {"all"}


def test_the_part_is_what_the_setting_would_draw():
    policy, entries = TinyPolicy(torch.float64), [{"prompt": prompt} for prompt in PROMPTS]
    sketch = Sketch(sum(parameter.numel() for parameter in policy.parameters()))
    some = replace(ALL, **SOME)
    whole, own = (sample(policy, entries, get_reward(brightness), config, 5, sketch) for config in (ALL, some))
    part = part_of(whole, some)
    assert part.spread == pytest.approx(own.spread)
    ratios = [part.gradients[step].norm() / own.gradients[step].norm() for step in (1, 3)]
    assert float(ratios[0]) == pytest.approx(float(ratios[1]), rel=1e-5), "one factor for all steps"
    for step in (1, 3):
        torch.testing.assert_close(part.gradients[step], own.gradients[step] * ratios[0], rtol=1e-4, atol=1e-7)
