"""Wrong ways to call the public functions: each raises a ValueError that names the function and the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

import tempflow_fast as tff

CONFIG = tff.GRPOConfig(num_steps=4, num_seeds=2, num_branches=2)
TABLE = tff.step_table(tff.linear_sigmas(4))
POLICY = TinyPolicy()
NOISE = torch.zeros(3, 3, 2, 2)
HUGE = 10**30


def step(**changes: Any) -> Callable[[], object]:
    usual = {"policy": POLICY, "prompts": PROMPTS, "reward_fn": brightness, "optimizer": sgd(POLICY), "config": CONFIG}
    return lambda: tff.grpo_step(**usual | changes)


def roll(**changes: Any) -> Callable[[], object]:
    usual = {"policy": POLICY, "condition": POLICY.encode(PROMPTS), "table": TABLE, "noise": NOISE, "num_branches": 2}
    return lambda: tff.rollout(**usual | changes)


def learn(**changes: Any) -> Callable[[], object]:
    usual = {"policy": POLICY, "rollout": roll()(), "advantages": torch.zeros(3, 3, 2), "optimizer": sgd(POLICY)}
    return lambda: tff.update(**{**usual, "config": CONFIG, **changes})


def measure(**changes: Any) -> Callable[[], object]:
    usual = {"policy": POLICY, "prompts": PROMPTS, "reward_fn": brightness, "settings": CONFIG}
    return lambda: tff.measure_signal(**usual | changes)


def config(**settings: Any) -> Callable[[], object]:
    return lambda: tff.GRPOConfig(**settings)


CASES: dict[str, list[tuple[Callable[[], object], str]]] = {
    "grpo_step": [
        *((step(policy=wrong), "policy") for wrong in (None, "embedded", torch.nn.Linear(2, 2))),
        *((step(prompts=wrong), "prompts") for wrong in (None, "a text", [], [5], [None], 7)),
        *((step(optimizer=wrong), "optimizer") for wrong in (None, "adamw", 1e-3)),
        *((step(config=wrong), "config") for wrong in (None, {}, {"num_steps": 4}, "shapes")),
        *((step(seed=wrong), "seed") for wrong in (None, 1.5, "0", HUGE)),
        *((step(metadata=wrong), "metadata") for wrong in (5, [{}], ["x"] * 3)),
        *((step(processes=wrong), "processes") for wrong in (2, "all")),
    ],
    "get_reward": [
        *(
            (lambda wrong=wrong: tff.get_reward(wrong), "reward")
            for wrong in (None, 5, "", [], b"shapes", "nope", {"": 1})
        ),
        (step(reward_fn=None), "reward"),
    ],
    "rollout": [
        *((roll(policy=wrong), "policy") for wrong in (None, "embedded")),
        *((roll(condition=wrong), "condition") for wrong in (None, PROMPTS, POLICY.encode(PROMPTS[:1]))),
        *((roll(table=wrong), "table") for wrong in (None, [1.0, 0.0], tff.linear_sigmas(4))),
        *((roll(noise=wrong), "noise") for wrong in (None, 5, [0.0], torch.zeros(3, 4), NOISE.long())),
        *((roll(num_branches=wrong), "num_branches") for wrong in (None, 0, 2.5, "2", -1)),
        *((roll(seed=wrong), "seed") for wrong in (None, 0.5, "x")),
        *((roll(max_batch=wrong), "max_batch") for wrong in (0, 1.5, "x")),
        *((roll(trajectory_ids=wrong), "trajectory_ids") for wrong in (5, [0.5] * 3, [0])),
        *((roll(guidance_scale=wrong), "guidance_scale") for wrong in (None, "x", math.nan)),
    ],
    "update": [
        *((learn(policy=wrong), "policy") for wrong in (None, 5)),
        *((learn(rollout=wrong), "rollout") for wrong in (None, NOISE)),
        *((learn(advantages=wrong), "advantages") for wrong in (None, [0.0], torch.zeros(2, 2))),
        *((learn(optimizer=wrong), "optimizer") for wrong in (None, "sgd")),
        *((learn(config=wrong), "config") for wrong in (None, {})),
    ],
    "group_advantages": [
        *((lambda wrong=wrong: tff.group_advantages(wrong), "rewards") for wrong in (None, 5, [1.0], torch.zeros(2))),
        (lambda: tff.group_advantages(torch.zeros(2, 2, 2).long()), "rewards"),
        (lambda: tff.group_advantages(torch.zeros(2, 2, 2), "all"), "group"),
        (lambda: tff.group_advantages(torch.zeros(2, 2, 2), None), "group"),
        (lambda: tff.group_advantages(torch.zeros(2, 2, 2), "prompt"), "prompt_ids"),
        (lambda: tff.group_advantages(torch.zeros(2, 2, 2), adv_eps="x"), "adv_eps"),
        (lambda: tff.group_advantages(torch.zeros(2, 2, 2), adv_clip=None), "adv_clip"),
    ],
    "step_table": [
        *((lambda wrong=wrong: tff.step_table(wrong), "sigmas") for wrong in (None, 5, "x", [], [1.0], [0.0, 1.0])),
        *((lambda wrong=wrong: tff.step_table([1.0, 0.0], wrong), "sampler") for wrong in (None, "x", 5, [])),
        *(
            (lambda wrong=wrong: tff.step_table([1.0, 0.5, 0.0], "cps", wrong), "noise_level")
            for wrong in (None, "x", -1)
        ),
        (lambda: tff.step_table([1.0, 0.5, 0.0], branch_steps=5), "branch_steps"),
        (lambda: tff.step_table([1.0, 0.5, 0.0], branch_steps=["0"]), "branch_steps"),
    ],
    "linear_sigmas": [
        *((lambda wrong=wrong: tff.linear_sigmas(wrong), "num_steps") for wrong in (None, 0, 2.5, "4", -1)),
        *((lambda wrong=wrong: tff.linear_sigmas(4, wrong), "shift") for wrong in (None, 0, "x", math.nan, math.inf)),
    ],
    "load_policy": [
        *((lambda wrong=wrong: tff.load_policy(wrong), "model") for wrong in (None, 5, "", "nope", [], b"embedded")),
        *((lambda wrong=wrong: tff.load_policy("embedded", wrong), "device") for wrong in (None, 5, 5.5, "gpu", [])),
        *((lambda wrong=wrong: tff.load_policy("embedded", dtype=wrong), "dtype") for wrong in ("x", torch.int64)),
        *(
            (lambda wrong=wrong: tff.load_policy("embedded", resolution=wrong), "resolution")
            for wrong in ("x", 7, -8, 16.5)
        ),
        (lambda: tff.load_policy("embedded", max_text_length="x"), "max_text_length"),
        (lambda: tff.load_policy("embedded", max_text_length=0), "max_text_length"),
    ],
    "Geometry": [
        *((lambda wrong=wrong: tff.Geometry(wrong, 4), "config") for wrong in (None, {}, "x")),
        *((lambda wrong=wrong: tff.Geometry(CONFIG, wrong), "num_prompts") for wrong in (None, 0, "x", 1.5)),
        *((lambda wrong=wrong: tff.Geometry(CONFIG, 4, wrong), "num_processes") for wrong in (None, 0, "x")),
    ],
    "measure_signal": [
        *((measure(policy=wrong), "policy") for wrong in (None, 5)),
        *((measure(prompts=wrong), "prompts") for wrong in (None, 5)),
        *((measure(settings=wrong), "settings") for wrong in (None, {}, "x")),
        *((measure(num_iterations=wrong), "num_iterations") for wrong in (None, 1, 2.5)),
        *((measure(seed=wrong), "seed") for wrong in (None, 0.5)),
    ],
    "launched": [(lambda: tff.launched(minutes="x"), "minutes"), (lambda: tff.launched(minutes=-1), "minutes")],
    "GRPOConfig": [
        *((config(num_steps=wrong), "num_steps") for wrong in (None, 10.0, "10", True, 0)),
        *((config(num_branches=wrong), "num_branches") for wrong in (None, 6.0, "6", [], 0)),
        *((config(guided_training=wrong), "guided_training") for wrong in ("false", 1, None)),
        *((config(sampler=wrong), "sampler") for wrong in ("ode", None, 5, "flow-sde")),
        *((config(clip_range=wrong), "clip_range") for wrong in ("x", None, math.nan, 0)),
        *((config(branch_steps=wrong), "branch_steps") for wrong in ((), 5, (0.5,), (99,), "12")),
        *((config(sigmas=wrong), "sigmas") for wrong in (5, "x", (1.0, 0.0), ("a",))),
    ],
}
LISTED = [
    pytest.param(call, function, argument, id=f"{function}-{argument}-{number}")
    for function, cases in CASES.items()
    for number, (call, argument) in enumerate(cases)
]


@pytest.mark.parametrize(("call", "function", "argument"), LISTED)
def test_a_wrong_argument_is_named(call, function, argument):
    before = [parameter.clone() for parameter in POLICY.parameters()]
    with pytest.raises(ValueError, match=rf"\b{argument}\b") as refused:
        call()
    assert str(refused.value).startswith((f"{function}: ", "grpo_step: ", "read_", "SD3Policy"))
    assert "must be " in str(refused.value)
    assert all(map(torch.equal, before, POLICY.parameters()))


def test_every_public_function_is_in_the_table():
    values = {"Rollout", "StepTable", "Processes", "__version__", "info", "ops", "policies", "rewards"}
    assert set(CASES) == set(tff.__all__) - values
