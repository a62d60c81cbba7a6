"""What a terminal gets to see of texts that others wrote."""

from __future__ import annotations

import pytest

from tempflow_fast.text import printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a photo of 2 cups, é 日本 🙂\u200d", "a photo of 2 cups, é 日本 🙂\u200d"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("one\rtwo\nthree\ttabs\x7f\x9b", r"one\rtwo\nthree\ttabs\x7f\x9b"),
        ("\u2028\u2029\u202egnp.exe\u2066\ufeff", r"\u2028\u2029\u202egnp.exe\u2066\ufeff"),
        ("lone \ud800", r"lone \ud800"),
        (7, "7"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_lines_are_kept_on_request():
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"


def test_a_long_text_is_cut_and_says_so():
    assert shortened("ab\ncd", 3) == "ab\\n..."
    assert shortened("abc", 3) == "abc"
