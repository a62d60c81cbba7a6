"""Text accuracy, with the real reader on text drawn here."""

import pytest
import torch
from torch import Tensor

from tempflow_fast.rewards import RewardError, get_reward
from tempflow_fast.rewards.ocr import accuracy, edit_distance, wanted_text

SIZE = 192


def drawn(text: str, color: str = "black") -> Tensor:
    """An image [3, 192, 192] in [0, 1] with the text on white."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (SIZE, SIZE), "white")
    ImageDraw.Draw(image).multiline_text((16, 40), text, fill=color, font=ImageFont.load_default(38))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.slow
def test_right_wrong_and_missing_text_as_the_real_reader_sees_it():
    pytest.importorskip("rapidocr", reason="the ocr extra is not installed")
    prompt = 'a sign that says "Open 24h"'
    cases = {"Open 24h": 1.0, "OPEN\n24 H": 1.0, "Open 25h": 6 / 7, "Closed": 0.0, "": 0.0}
    images = torch.stack(
        [drawn(text, color) for text, color in zip(cases, ["black", "red", *["black"] * 3], strict=True)]
    )
    scores = get_reward("ocr")(images, [prompt] * 5, [{}] * 5)
    assert scores[:2].tolist() == [1.0, 1.0]
    assert scores[2].item() == pytest.approx(6 / 7)
    assert scores[3] < 0.4
    assert scores[4] == 0


@pytest.mark.filterwarnings('ignore:reward "ocr" failed')
def test_a_prompt_without_a_text_is_named():
    pytest.importorskip("rapidocr", reason="the ocr extra is not installed")
    with pytest.raises(RewardError, match=r'reward "ocr" failed on sample 1 .*must be one that quotes a text'):
        get_reward("ocr")(torch.zeros(2, 3, 8, 8), ['"x"', "a dog"], [{}, {}])


@pytest.mark.parametrize(
    ("read", "wanted", "score"),
    [
        ("hello", "Hello", 1),
        ("he llo", "hel lo", 1),
        ("well hello there", "hello", 1),
        ("helo", "hello", 0.8),
        ("", "hello", 0),
        ("something else entirely", "hello", 0),
        ("cafe\u0301", "caf\u00e9", 1),
        ("caf\u00e9", "CAFE\u0301", 1),
        ("cafe", "cafe\u0301", 0.75),
        ("\u01f0", "\u01f0", 1),  # its lower case is two characters
    ],
)
def test_accuracy(read, wanted, score):
    assert accuracy(read, wanted) == pytest.approx(score)


def test_edit_distance():
    for a, b, distance in (
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("abc", "", 3),
        ("flaw", "lawn", 2),
        ("a", "a", 0),
    ):
        assert edit_distance(a, b) == distance


def test_metadata_go_before_quotes():
    assert wanted_text('a "cat"', {"text": "dog"}) == "dog"
    assert wanted_text('a "cat" and a "cow"', {}) == "cat"
    assert wanted_text("a year", {"text": 2024}) == "2024"
    assert wanted_text('a "cat"', {"text": 0}) == "0"
    assert wanted_text('a "cat"', {"text": ""}) == wanted_text('a "cat"', {"text": None}) == "cat"


@pytest.mark.parametrize(
    ("prompt", "metadata", "words"),
    [
        ('an open "quote', {}, "must be one that quotes a text"),
        ('an empty " "', {}, "must be one that quotes a text"),
        ("a year", {"text": " "}, "must be one that quotes a text"),
        ("a price", {"text": 1.5}, "text in the metadata must be a text or an integer, got 1.5"),
        ("a truth", {"text": True}, "text in the metadata must be a text or an integer, got True"),
        ("texts", {"text": ["a"]}, "text in the metadata must be a text or an integer, got \\['a'\\]"),
    ],
)
def test_what_is_no_text_to_read_is_named(prompt, metadata, words):
    with pytest.raises(ValueError, match=words):
        wanted_text(prompt, metadata)
