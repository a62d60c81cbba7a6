"""Texts of others, such as prompts and the answers of servers, made fit for a terminal."""

from __future__ import annotations

from unicodedata import category

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that a terminal obeys rather than shows: controls, writing directions, surrogates, line ends."""
JOINERS = "\u200c\u200d"
"""Members of these categories that words and emoji need."""


def printable(text: object, keep: str = "") -> str:
    r"""Writes characters that a terminal would obey instead of show as escapes, such as \x1b.

    Args:
        text: anything; `str` makes it a text.
        keep: characters to leave as they are, such as "\n" for a text of several lines.
    """
    return "".join(_escaped(char) if _is_hidden(char) and char not in keep else char for char in str(text))


def shortened(text: object, length: int = 80) -> str:
    """Writes the beginning of a text as one line for a message; see `printable`.

    Args:
        text: anything.
        length: the most characters to show, before the sign that some are missing.
    """
    whole = str(text)
    return printable(whole[:length]) + ("..." if len(whole) > length else "")


def _is_hidden(char: str) -> bool:
    return not " " <= char <= "~" and category(char) in HIDDEN and char not in JOINERS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
