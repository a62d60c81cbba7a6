"""Preprocessing against Pillow and the libraries' own code."""

import pytest
import torch
from support.image_processors import pil_processor
from support.tiny_rewards import as_pil, photographs

from tempflow_fast.rewards.pixels import as_bytes, clip_pixels
from tempflow_fast.rewards.resize import center_square, resized


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(24, 19), (97, 77), (61, 48), (200, 153)])
def test_resizing_is_pillows_to_the_bit(height, width, mode):
    import numpy as np
    from PIL import Image

    noise = torch.randint(0, 256, (2, 3, 61, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    got = resized(noise, height, width, mode)
    for image, expected in zip(got, as_pil(noise / 255), strict=True):
        expected = expected.resize((width, height), getattr(Image, mode.upper()))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 71), (40, 90), (24, 24), (3, 60)])
def test_clip_pixels_are_the_librarys(height, width):
    images = photographs(2, height, width)
    processor = pil_processor("CLIP", size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    # An image of three rows could also be one with its channels first.
    expected = processor(images=as_pil(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert (clip_pixels(images, 24) - expected).abs().max() < 1e-5


def test_a_sliver_is_resized_without_its_whole_length():
    sliver = as_bytes(photographs(1, 512, 1))
    assert center_square(sliver, 224).shape == (1, 3, 224, 224)  # 224 x 114688 in full


def test_blip_pixels_are_clips(clip):
    images = photographs(2, 60, 60)
    processor = pil_processor("Blip", size={"height": 24, "width": 24})
    expected = processor(images=as_pil(images), return_tensors="pt")["pixel_values"]
    assert (clip_pixels(images, 24) - expected).abs().max() < 1e-5
