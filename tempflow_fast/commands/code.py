"""Code that a file names: it runs with the user's rights, so only the user can allow it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import tyro

from .options import require_option

AllowCode = Annotated[
    bool,
    tyro.conf.arg(
        help="Run code that files name: a reward module:function in the settings of a run directory, or classes "
        "in a model directory. What is typed on the command line needs no permission."
    ),
]


def check_code(rewards: Iterable[str | None], place: object, allow_code: bool) -> None:
    """Refuses rewards that are code and come from a file, before anything is imported.

    Args:
        rewards: descriptions from the file, as in `get_reward`; None: no reward.
        place: the file or its directory.
        allow_code: whether the user has allowed it.

    Raises:
        ValueError: if one of them names code and the user has not allowed it.
    """
    from ..rewards import code_in  # imports torch

    if allow_code:
        return
    named = sorted({repr(code) for reward in rewards if reward is not None for code in code_in(reward)})
    expected = f"given to run {' and '.join(named)}, which a file names: the settings in {str(place)!r}"
    require_option(not named, "allow_code", expected, "no permission")
