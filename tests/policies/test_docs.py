"""The program in docs/policies.md is complete and does what it says."""

from __future__ import annotations

import re

import torch
from support import ROOT

PAGE = (ROOT / "docs" / "policies.md").read_text()


def test_a_model_of_ones_own_learns(capsys):
    (program,) = [
        block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S) if "class ColorFlow" in block
    ]
    names: dict = {}
    exec(compile(program, "docs/policies.md", "exec"), names)
    rewards = names["rewards"]
    assert max(rewards[:3]) + 0.1 < min(rewards[-3:])
    assert capsys.readouterr().out == f"reward {rewards[0]:.3f} -> {rewards[-1]:.3f}\n"

    policy = names["policy"]
    condition, latents = policy.encode(["red"]), torch.randn(1, *policy.latent_shape)
    with policy.reference(), torch.no_grad():
        before = policy.velocity(latents, 0.5, condition)[0]
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(before, names["ColorFlow"]()(latents, torch.tensor([0.5]), condition.tensors["color"]))
        assert not torch.equal(before, policy.velocity(latents, 0.5, condition)[0])
