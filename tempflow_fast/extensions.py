"""Code of others, by name: module:attribute, or what an installed package gives under a group of entry points.

Nothing here imports torch.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from importlib import import_module, metadata
from typing import Any

from .errors import fail, require, unknown
from .text import printable

REWARDS, RECIPES, POLICIES = (f"tempflow_fast.{kind}" for kind in ("rewards", "recipes", "policies"))
"""Groups of entry points. The name of a policy is that of its pipeline's class."""
FORM = '"module:function"'


@functools.cache
def installed(group: str) -> dict[str, str]:
    """Returns what the installed packages give.

    Args:
        group: of entry points.

    Returns:
        Name -> "module:attribute".

    Raises:
        ValueError: if two packages give the same name.
    """
    found: dict[str, str] = {}
    for entry in metadata.entry_points(group=group):
        if found.setdefault(entry.name, entry.value) != entry.value:
            got = f"{entry.name!r} for {found[entry.name]} and {entry.value}"
            fail("entry points", group, "of one package for each name", got)
    return found


def find_code(
    function: str, argument: str, name: str, packaged: Mapping[str, Any], group: str, form: str = FORM
) -> Any:
    """Returns what a name means, imported where it is code.

    Args:
        function: the caller, for errors.
        argument: its argument that holds the name.
        name: of `packaged`, of an entry point, or "module:attribute".
        packaged: name -> the object or "module:attribute", of this package.
        group: of entry points.
        form: how a name of code looks, for errors.

    Raises:
        ValueError: if the name is none of these, means two of them, or cannot be imported.
    """
    others = installed(group)
    if name in packaged and name in others:
        fail(function, argument, "a name with one meaning", f"{name!r}, which {others[name]} gives as well")
    found = packaged.get(name) or others.get(name) or name
    if not isinstance(found, str):
        return found
    if ":" not in found:
        unknown(function, argument, name, [*packaged, *others], f" or {form}")
    return import_code(function, argument, found, form)


def import_code(function: str, argument: str, target: str, form: str = FORM) -> Any:
    """Returns an attribute of a module, which may be in the working directory.

    Args:
        function: the caller, for errors.
        argument: its argument that holds the name.
        target: "module:attribute".
        form: as in `find_code`.

    Raises:
        ValueError: naming what cannot be imported, and why.
    """
    module, _, attribute = target.partition(":")
    names = [*module.split("."), attribute]
    fits = all(part.isidentifier() for part in names)
    require(fits, function, argument, f"{form}, two names of Python", repr(target))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the import path of a script has its folder, not the user's
    try:
        return getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # SystemExit would end the run as if it were complete
        kind = "" if isinstance(error, (ImportError, AttributeError, OSError)) else f"{type(error).__name__}: "
        reason = printable(" ".join(str(error).split()))[:300]
        fail(function, argument, "one that loads", f'"{target}": {kind}{reason}')
