"""Source images on their way to a policy."""

from __future__ import annotations

import pytest
import torch
from support.tiny import PROMPTS, TinyPolicy, brightness, sgd

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.evaluation.sample import sample_images
from tempflow_fast.policies import Condition
from tempflow_fast.policies.base import encoded


class Editor:
    """Notes what it is asked to encode."""

    num_images = (1, 2)

    def encode(self, prompts, guided=False, images=None):
        self.asked = (list(prompts), guided, images)
        return Condition({"x": torch.zeros(len(prompts))})


def test_an_editor_gets_the_images_of_every_prompt():
    editor = Editor()
    encoded("f", editor, ["p", "q"], [{"image": "a"}, {"image": ["b", "c"]}], True)
    assert editor.asked == (["p", "q"], True, [("a",), ("b", "c")])


@pytest.mark.parametrize("images", [None, ["a", "b", "c"]])
def test_an_editor_refuses_another_number_of_images(images):
    with pytest.raises(ValueError, match=r"f: image must be that of 1 to 2 source images per prompt, .* got [03]"):
        encoded("f", Editor(), ["p"], [{"image": images}], False)


def test_a_model_that_edits_nothing_refuses_images_before_any_work():
    policy, refused = TinyPolicy(), r"image must be that of no source images per prompt, as this model takes, got 1"
    config, metadata = GRPOConfig(num_steps=4, num_branches=2), [{"image": "a.png"}]
    with pytest.raises(ValueError, match=f"grpo_step: {refused}"):
        grpo_step(policy, PROMPTS[:1], brightness, sgd(policy), config, metadata=metadata)
    with pytest.raises(ValueError, match=f"sample_images: {refused}"):
        sample_images(policy, PROMPTS[:1], config.table(policy), metadata=metadata)
