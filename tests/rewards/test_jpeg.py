"""Compressibility as a reward."""

import pytest
import torch

from tempflow_fast.evaluation.compare import paired_differences
from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.jpeg import jpeg
from tempflow_fast.rewards.pixels import as_bytes
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.prepare import prepare_policy
from tempflow_fast.run.train import train
from tempflow_fast.settings.recipes import get_recipe


def test_size_of_the_file_decides():
    flat, noise = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scores = get_reward("jpeg_compressibility=1,jpeg_incompressibility=1").score(
        torch.cat([flat, noise]), ["", ""], [{}, {}]
    )
    small, large = scores.parts["jpeg_incompressibility"]
    assert 0 < small < 1 < 5 < large
    assert large == len(jpeg(as_bytes(noise)[0])) / 1000
    assert torch.equal(scores.parts["jpeg_compressibility"], -scores.parts["jpeg_incompressibility"] / 500)


def test_the_file_holds_the_image():
    import io

    import numpy as np
    from PIL import Image

    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64).clone()
    ramp[0] = 1 - ramp[0]
    shown = np.asarray(Image.open(io.BytesIO(jpeg(as_bytes(ramp)))))
    assert abs(shown.astype(int) - as_bytes(ramp).permute(1, 2, 0).numpy().astype(int)).max() <= 12


@pytest.mark.slow
def test_a_small_run_raises_it_and_the_watched_reward_falls(tmp_path):
    """docs/evaluation.md's run on a small scale: files get larger, and what was asked for leaves the images.

    The other way round there is little to gain: with two seeds of six, smaller files were not told from luck.
    """
    settings = {"reward": "jpeg_incompressibility=1,shapes=0", "adv_eps": 0.02, "learning_rate": 2e-3}
    settings |= {"learning_rate_decay": 0.0, "prompts_per_iteration": 8, "num_iterations": 8, "eval_images": 36}
    config = get_recipe("shapes").with_settings(**settings, trackers=())
    trained = train(config, prepare_policy(config.policy), RunDirectory(tmp_path / "run"), report=lambda sentence: None)
    gain = paired_differences(trained.after, trained.before)["overall"]
    assert gain["reward"].low > 0, "kilobytes"
    assert gain["reward_shapes"].high < 0
