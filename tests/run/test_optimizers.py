"""The optimizer's settings, and the learning rate over a run."""

from __future__ import annotations

import sys

import pytest
import torch
from support.tiny import TinyPolicy
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter

from tempflow_fast.run.optimizers import learning_rate, make_optimizer
from tempflow_fast.settings.run import OptimizerConfig


def test_learning_rate_rises_and_falls():
    config = OptimizerConfig(learning_rate=1.0, warmup_iterations=3, learning_rate_decay=0.4)
    rates = [learning_rate(config, index, index / 10) for index in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert learning_rate(OptimizerConfig(learning_rate=1.0), 10**6, 0.0) == 1.0


def test_settings_reach_the_optimizer():
    config = OptimizerConfig(learning_rate=0.3, betas=(0.8, 0.9), weight_decay=0.2, adam_eps=1e-5)
    group = make_optimizer(TinyPolicy().parameters(), config).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.3, (0.8, 0.9), 0.2, 1e-5)


def test_the_error_for_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"optimizer must be 'adamw' where .*: pip install bitsandbytes"):
        make_optimizer(TinyPolicy().parameters(), OptimizerConfig(optimizer="adamw_8bit"))


@pytest.mark.parametrize(("device", "fused"), [("cpu", None), ("cuda:0", True)])
def test_adamw_is_one_kernel_on_an_accelerator(device, fused):
    without_data = torch.empty(2, device="meta")  # in the mode, torch 2.9 makes a fake tensor of it
    with FakeTensorMode() as mode:
        weight = Parameter(FakeTensor(mode, without_data, torch.device(device)))
        optimizer = make_optimizer(iter([weight]), OptimizerConfig())
    assert optimizer.defaults["fused"] is fused
    assert optimizer.param_groups[0]["params"][0] is weight
