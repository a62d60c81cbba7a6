"""What a field says about its setting beyond the type: its help text, and whether a run may change it.

The text under a field is its documentation, on the command line and, through `documented`, in `help()`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import field
from itertools import pairwise
from typing import Any, TypeVar

Settings = TypeVar("Settings")
FIXED = "fixed"
"""Marks a setting that cannot change during a run."""
FIXED_PRESENCE = "fixed presence"
"""Marks a setting that a run may change, but not from or to None."""
SCORES = "scores"
"""Marks a setting that the scores of an evaluation depend on."""
HELP_WIDTH = 120 - len(" |  ")  # `help()` puts this in front of every line of a class


def fixed(default: Any, *, scores: bool = False) -> Any:
    """Declares a setting that cannot change during a run.

    With another value, the run's checkpoints would not load, or its scores before and after could not be compared.

    Args:
        default: the default value.
        scores: whether the scores of an evaluation depend on the setting.

    Returns:
        The dataclass field.
    """
    return field(default=default, metadata={FIXED: True, SCORES: scores})


def fixed_presence(default: Any) -> Any:
    """Declares a setting that a run may change to another value, but not from or to None.

    Args:
        default: the default value.

    Returns:
        The dataclass field.
    """
    return field(default=default, metadata={FIXED_PRESENCE: True})


def documented(settings: type[Settings]) -> type[Settings]:
    """Adds the text under each field to the docstring of the class, where `help()` shows it.

    Args:
        settings: a dataclass with a text under each field.

    Returns:
        The same class.
    """
    try:
        source = textwrap.dedent(inspect.getsource(settings))
    except OSError:  # no source files: the class works without them
        return settings
    definition: Any = ast.parse(source).body[0]
    texts = {}
    for statement, after in pairwise(definition.body):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and is_text:
            texts[ast.unparse(statement.target)] = inspect.cleandoc(after.value.value)
    wrapper = textwrap.TextWrapper(
        HELP_WIDTH, initial_indent=4 * " ", subsequent_indent=8 * " ", break_long_words=False, break_on_hyphens=False
    )
    lines = [wrapper.fill(f"{name}: {text}") for name, text in texts.items()]
    settings.__doc__ = "\n".join([inspect.cleandoc(settings.__doc__ or ""), "", "Attributes:", *lines, ""])
    return settings
