"""The measures of reward hacking on images whose answer is known."""

import colorsys
from itertools import combinations

import pytest
import torch

from tempflow_fast.grpo.image_statistics import clipped_share, contrast, diversity, image_statistics, saturation


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_diversity_is_the_distance_of_pairs():
    images = noise(2, 4, 3, 5, 6)
    images[1] = images[1, :1]
    pairs = [(images[0, i] - images[0, j]).square().mean() for i, j in combinations(range(4), 2)]
    expected = (sum(pairs) / len(pairs)).sqrt()
    assert diversity(images).tolist() == pytest.approx([expected.item(), 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="groups of two or more, got 1"):
        diversity(images[:, :1])


def test_saturation_is_hsvs():
    images = noise(2, 3, 4, 4)
    images[1] = images[1, :1]  # grey
    pixels = images[0].flatten(1).T.tolist()
    expected = sum(colorsys.rgb_to_hsv(*pixel)[1] for pixel in pixels) / len(pixels)
    assert saturation(images).tolist() == pytest.approx([expected, 0.0], abs=1e-5)
    pure = torch.zeros(1, 3, 2, 2)
    pure[:, 0] = 0.5
    assert saturation(pure).item() == 1
    assert saturation(torch.zeros(1, 3, 2, 2)).item() == 0


def test_clipped_values_and_contrast():
    images = torch.full((2, 3, 2, 2), 0.5)
    images[0, 0, 0] = 1.0
    images[0, 1, 0, 0] = 0.001
    assert clipped_share(images).tolist() == [0.25, 0.0]
    assert contrast(images)[1] == 0
    halves = torch.zeros(1, 3, 2, 2)
    halves[..., 0] = 1
    assert contrast(halves).item() == pytest.approx(0.5)


def test_all_of_them_by_name():
    images = noise(3, 2, 3, 4, 4)
    found = image_statistics(images)
    assert list(found) == ["image_diversity", "image_saturation", "image_clipped", "image_contrast"]
    assert found["image_diversity"].item() == pytest.approx(diversity(images).mean().item())
    assert found["image_contrast"].item() == pytest.approx(contrast(images.flatten(0, 1)).mean().item())
    assert "image_diversity" not in image_statistics(images[:, :1])
    with pytest.raises(ValueError, match=r"images must be \[G, K, 3, H, W\] or .*, got \[2, 3, 4, 4\]"):
        image_statistics(images[0])


def test_those_of_videos_are_over_all_their_frames():
    videos = noise(2, 2, 5, 3, 4, 4)
    found, frames = image_statistics(videos), image_statistics(videos.flatten(1, 2))
    for name in ("image_saturation", "image_clipped"):
        assert found[name].item() == pytest.approx(frames[name].item())
    assert found["image_diversity"].item() == pytest.approx(diversity(videos.flatten(2, 3)).mean().item())
    grey = torch.zeros(1, 2, 3, 4, 4)
    grey[:, 1] = 1.0  # a black frame and a white one
    assert (contrast(grey).item(), saturation(grey).item()) == (pytest.approx(0.5), 0.0)
