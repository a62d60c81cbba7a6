"""Code that a file names: it runs with the user's rights, so only the user can allow it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import tyro

from .options import require_option

AllowCode = Annotated[
    bool,
    tyro.conf.arg(
        help="Run code that files name: a reward module:function or a policy module:Class in a run directory or in "
        "--config, or classes in a model directory. What is typed on the command line needs no permission."
    ),
]


NAMES_OF_CODE = ("reward", "accuracy", "policy")
"""Settings that may name code."""


def check_code(named: Iterable[str | None], place: object, allow_code: bool) -> None:
    """Refuses rewards and policies that are code and come from a file, before anything is imported.

    Args:
        named: descriptions of rewards from the file, as in `get_reward`, and names of policies; None: no such.
        place: the file or its directory.
        allow_code: whether the user has allowed it.

    Raises:
        ValueError: if one of them names code and the user has not allowed it.
    """
    from ..rewards import code_in  # imports torch

    if allow_code:
        return
    found = sorted({repr(code) for name in named if name is not None for code in code_in(name)})
    expected = f"given to run {' and '.join(found)}, which a file names: the settings in {str(place)!r}"
    require_option(not found, "allow_code", expected, "no permission")
