"""What a setting's field says beyond its type: its help text, and whether a run may change it.

The text under a field is its documentation: on the command line and, through `documented`, in `help()`.
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
"""Mark of a setting that a run keeps."""
FIXED_PRESENCE = "fixed presence"
"""Mark of a setting that a run may change, but not from or to None."""
SCORES = "scores"
"""Mark of a setting that the scores of an evaluation depend on."""


def fixed(default: Any, *, scores: bool = False) -> Any:
    """A setting that a run keeps: its checkpoints or its scores before and after would not fit another value.

    Args:
        default: as in `dataclasses.field`.
        scores: whether the scores of an evaluation depend on it.
    """
    return field(default=default, metadata={FIXED: True, SCORES: scores})


def fixed_presence(default: Any) -> Any:
    """A setting that a run may change to another value, but not from or to None."""
    return field(default=default, metadata={FIXED_PRESENCE: True})


def documented(settings: type[Settings]) -> type[Settings]:
    """Adds the text under each field to the class's docstring, where `help()` shows it."""
    try:
        source = textwrap.dedent(inspect.getsource(settings))
    except OSError:  # no source files: the class works without
        return settings
    definition: Any = ast.parse(source).body[0]
    texts = {}
    for statement, after in pairwise(definition.body):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and is_text:
            texts[ast.unparse(statement.target)] = inspect.cleandoc(after.value.value)
    lines = [f"{name}: {textwrap.indent(text, 12 * ' ').lstrip()}" for name, text in texts.items()]
    settings.__doc__ = f"{settings.__doc__}\n\n    Attributes:\n" + "".join(f"        {line}\n" for line in lines)
    return settings
