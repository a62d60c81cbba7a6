"""Images drawn for an evaluation."""

from __future__ import annotations

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy

from tempflow_fast import step_table
from tempflow_fast.errors import NotFiniteError
from tempflow_fast.evaluation.sample import sample_images
from tempflow_fast.run.load import load_policy
from tempflow_fast.settings.recipes import get_recipe


def test_images_do_not_depend_on_the_batch():
    policy = load_policy("embedded")
    table, prompts = get_recipe("shapes").grpo.table(policy), ["a photo of a red circle"] * 5
    whole, cut = (sample_images(policy, prompts, table, seed=3, max_batch=size) for size in (None, 2))
    assert torch.allclose(whole, cut, atol=1e-3)
    assert whole.diff(dim=0).abs().amax() > 0.1, "every image has its own noise"


def test_images_that_are_not_finite_are_an_error():
    policy = TinyPolicy()
    policy.decode = lambda latents: latents.sigmoid().where(torch.arange(len(latents)).view(-1, 1, 1, 1) < 1, torch.nan)
    with pytest.raises(NotFiniteError, match=r"image 8 \(prompt 'two blue squares'\) is not finite: .*decoder"):
        sample_images(policy, PROMPTS, step_table(policy.sigmas(4)), rows=[5, 8, 9])
