"""What to say about a name that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(what: str, name: str, known: Iterable[str], more: str = "") -> ValueError:
    """The error for a name that is none of `known`, with the nearest of them.

    Args:
        what: the function and its argument, such as "get_recipe: name".
        name: what was given.
        known: the names there are.
        more: what else would have been right, such as " or a path".
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return ValueError(f"{what} must be one of {', '.join(known)}{more}, got {name!r}{hint}")
