"""Library use prints nothing of its own, and a user's settings win."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from support.tiny_rewards import clip_model

from tempflow_fast.quiet import quiet

POLICY = """
import sys
import torch
import tempflow_fast as tff

directory = sys.argv[1]
policy = tff.load_policy("embedded")
policy.add_lora(rank=4, alpha=8)
table = tff.step_table(policy.sigmas(2), branch_steps=[0])
with torch.no_grad():
    noise = torch.zeros(1, *policy.latent_shape)
    drawn = tff.rollout(policy, policy.encode(["a photo of a red circle"]), table, noise, 1)
    images = policy.decode(drawn.latents.flatten(0, 2))
tff.get_reward("shapes")(images, ["a red circle"], [{"include": [{"class": "circle", "count": 1}]}])
policy.save_lora(f"{directory}/lora")
policy.save(f"{directory}/model")
tff.load_policy(f"{directory}/model").load_lora(f"{directory}/lora")
"""
REWARD = """
import sys
import torch
import tempflow_fast as tff

tff.get_reward({"clip": {"model": sys.argv[1]}})(torch.rand(1, 3, 40, 40), ["a cow"], [{}])
"""
OWN_SETTINGS = """
import logging
import sys
import tempflow_fast as tff
import diffusers
from diffusers.utils import logging as tools
from transformers.utils import logging as other_tools

tools.set_verbosity_info()
other_tools.disable_progress_bar()
tff.load_policy("embedded").save(sys.argv[1])
levels = [logging.getLogger(name).level for name in ("diffusers", "transformers", "torchao")]
assert levels == [logging.INFO, logging.WARNING, logging.NOTSET], levels
assert tools.is_progress_bar_enabled() and not other_tools.is_progress_bar_enabled()
"""


def run(program, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )


@pytest.mark.slow
def test_a_policy_used_as_a_library_prints_nothing(tmp_path):
    done = run(POLICY, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_reward_used_as_a_library_prints_nothing(tmp_path):
    clip_model(tmp_path)
    done = run(REWARD, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_own_settings_win_and_stay(tmp_path):
    done = run(OWN_SETTINGS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Configuration saved in" in done.stderr  # what diffusers says at the level INFO
    assert "Loading weights" not in done.stderr


def test_levels_and_bars_are_restored():
    from diffusers.utils import logging as diffusers
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers

    def settings():
        bars = diffusers.is_progress_bar_enabled(), transformers.is_progress_bar_enabled()
        return logging.getLogger("diffusers").level, logging.getLogger("transformers").level, *bars

    before, hub_before = settings(), are_progress_bars_disabled()
    with quiet("diffusers", "transformers"):
        assert settings() == (logging.ERROR, logging.ERROR, False, False)
    assert settings() == before
    assert are_progress_bars_disabled() == hub_before


def test_the_environment_can_ask_for_bars(monkeypatch):
    from huggingface_hub import constants
    from transformers.utils import logging as transformers

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", False)
    with quiet("transformers"):
        assert transformers.is_progress_bar_enabled()
