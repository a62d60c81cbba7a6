"""Compressibility as a reward."""

import torch

from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.jpeg import jpeg
from tempflow_fast.rewards.pixels import as_bytes


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
