"""Source images of prompts, from files and from tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tempflow_fast.source_images import check_file, picture, pixels, sources_of


def saved(path: Path, mode: str = "RGB", size: tuple[int, int] = (4, 2), color="red", **options) -> Path:
    Image.new(mode, size, color).save(path, **options)
    return path


@pytest.mark.parametrize("entry", [{}, {"image": None}, {"image": ""}, {"image": []}])
def test_an_entry_without_an_image_has_none(entry):
    assert sources_of(entry) == ()


def test_an_entry_has_one_image_or_several(tmp_path):
    assert sources_of({"image": "a.png"}) == ("a.png",)
    assert sources_of({"image": [tmp_path / "a", "b"]}) == (tmp_path / "a", "b")


@pytest.mark.parametrize("value", [3, ["a", None], {"path": "a"}, [[]], [""]])
def test_what_is_no_path_is_refused(value):
    with pytest.raises(ValueError, match="image must be a path or a list of paths, got"):
        sources_of({"image": value})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pixels_are_rgb_rows_by_columns(tmp_path, mode):
    path = saved(tmp_path / "a.png", mode, color={"RGB": "red", "RGBA": "red", "L": 255, "P": 0}[mode])
    found = pixels(path)
    assert (found.shape, found.dtype) == ((3, 2, 4), torch.uint8)
    assert torch.equal(pixels(found), found)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_what_has_more_than_8_bits_is_refused(tmp_path, mode):
    path = saved(tmp_path / "depth.tiff", mode, color=300)  # to RGB, it would be cut off at 255
    for read in (pixels, lambda path: check_file("read_prompts", "image", path)):
        with pytest.raises(ValueError, match=rf"image must be .* 8 bits a channel, got .*depth.tiff' of mode {mode}"):
            read(path)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert picture(saved(tmp_path / "a.jpg", exif=exif)).size == (2, 4)


def test_a_file_that_changes_is_read_again(tmp_path):
    path = tmp_path / "a.bmp"
    before = pixels(saved(path, color="red"))
    after = pixels(saved(path, size=(4, 3), color="blue"))
    assert (before[0].unique().item(), after[2].unique().item()) == (255, 255)


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("nothing")
    whole = saved(tmp_path / "whole.png", size=(64, 64)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for name, expected in (("none.png", "an existing file"), ("text.png", "an image file"), (".", "an image file")):
        with pytest.raises(ValueError, match=f"f: x must be {expected}, got"):
            check_file("f", "x", tmp_path / name)
    check_file("f", "x", tmp_path / "half.png")  # its pixels are not read
    with pytest.raises(ValueError, match=r"picture: image must be an image file, got .*half\.png"):
        picture(tmp_path / "half.png")
