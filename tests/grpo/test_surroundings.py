"""What the caller's code and environment would change in an iteration is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.processes import DECIDED_HERE, AcceleratedProcesses, Processes, launched

SMALL = {"num_steps": 4, "num_seeds": 2, "num_branches": 3}


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (lambda: torch.autocast("cpu", torch.bfloat16), "autocast must be off around it"),
        (torch.no_grad, "gradient mode must be on"),
        (torch.inference_mode, "gradient mode must be on"),
        (lambda: torch.device("meta"), "default device must be the CPU, .* got meta"),
    ],
    ids=["autocast", "no_grad", "inference_mode", "device"],
)
def test_modes_around_an_iteration_are_refused_before_it(context, message):
    policy = TinyPolicy()
    optimizer = sgd(policy)
    with context(), pytest.raises(ValueError, match=f"grpo_step: .*{message}"):
        grpo_step(policy, PROMPTS, brightness, optimizer, GRPOConfig(**SMALL))
    assert not policy.calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_is_refused_before_the_iteration(dtype):
    policy = TinyPolicy()
    torch.set_default_dtype(dtype)
    try:
        with pytest.raises(ValueError, match=f"grpo_step: torch's default dtype must be float32: .*, got {dtype}"):
            grpo_step(policy, PROMPTS, brightness, sgd(policy), GRPOConfig(**SMALL))
    finally:
        torch.set_default_dtype(torch.float32)
    assert not policy.calls


@pytest.mark.parametrize("name", DECIDED_HERE)
@pytest.mark.parametrize("count", ["1", "2"])
def test_variables_that_would_change_the_numbers_are_refused(monkeypatch, name, count):
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.setenv(name, "4")
    with pytest.raises(ValueError, match=f"launched: {name} must be .*, since .*, got '4'"):
        launched()


def test_what_the_launcher_sets_without_being_asked_is_accepted(monkeypatch):
    for name, (wanted, _) in DECIDED_HERE.items():
        monkeypatch.setenv(name, wanted.upper())
    assert type(launched()) is Processes


@pytest.mark.parametrize("setting", [{"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 4}])
def test_an_accelerator_that_would_change_the_numbers_is_refused(setting):
    accelerator = SimpleNamespace(**{"mixed_precision": "no", "gradient_accumulation_steps": 1, **setting})
    with pytest.raises(ValueError, match=f"AcceleratedProcesses: accelerator.{next(iter(setting))} must be"):
        AcceleratedProcesses(accelerator)
