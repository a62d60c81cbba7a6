"""Images drawn for an evaluation."""

from __future__ import annotations

import torch

from tempflow_fast.evaluation.sample import sample_images
from tempflow_fast.run.load import load_policy
from tempflow_fast.settings.recipes import get_recipe


def test_images_do_not_depend_on_the_batch():
    policy = load_policy("embedded")
    table, prompts = get_recipe("shapes").grpo.table(policy), ["a photo of a red circle"] * 5
    whole, cut = (sample_images(policy, prompts, table, seed=3, max_batch=size) for size in (None, 2))
    assert torch.allclose(whole, cut, atol=1e-3)
    assert whole.diff(dim=0).abs().amax() > 0.1, "every image has its own noise"
