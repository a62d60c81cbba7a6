"""The Hugging Face hub: its files, and what happens where it cannot be reached.

The libraries ask an unreachable hub again for up to half a minute per file, and then speak of missing files. Here it is
asked once; where it does not answer, they look in their caches alone. Nothing here imports torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .choices import EMBEDDED_MODEL
from .errors import fail, require
from .text import shortened

SWITCHES = ("huggingface_hub.constants", "datasets.config")
"""Modules whose HF_HUB_OFFLINE decides whether a library asks the hub."""
INDEX = "model_index.json"
"""The file that says what a model's directory holds."""
PATIENCE = 5.0
"""Seconds in which the hub has to answer."""


@contextmanager
def without_retries(*sources: object) -> Iterator[str | None]:
    """Inside this context, the libraries of Hugging Face use their caches alone if the hub cannot be reached.

    Args:
        sources: what is about to be loaded; the hub is asked only if one of them is a text that is no path.

    Yields:
        Why the hub is not asked; None where it is.
    """
    asked = any(isinstance(source, str) and source and not Path(source).exists() for source in sources)
    reason = _why_unreachable() if asked else None
    names = ("huggingface_hub.constants", "datasets.config") if reason is not None else ()
    switches: dict[Any, bool] = {
        module: module.HF_HUB_OFFLINE for name in names if (module := sys.modules.get(name)) is not None
    }
    for module in switches:
        module.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        for module, before in switches.items():
            module.HF_HUB_OFFLINE = before


def _why_unreachable() -> str | None:
    """Why the hub does not answer, in words; None if it does."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    session: Any = get_session()  # of requests or httpx, by version; both know the user's proxies
    try:
        session.head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # of either library
        return shortened(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
    return None


def check_source(function: str, model: str) -> None:
    """Refuses what names no model, without asking the hub.

    Args:
        function: the caller, for the error.
        model: a directory, or owner/name on the hub.

    Raises:
        ValueError: for a path that does not exist or is no directory of a model.
    """
    path = Path(model)
    # A hub name is owner/name; anything else that does not exist must be a mistyped path.
    on_hub = model.count("/") == 1 and not model.startswith((".", "/")) and not path.exists()
    expected = f"{EMBEDDED_MODEL!r}, a directory with a {INDEX}, or a hub name"
    require(on_hub or (path / INDEX).is_file(), function, "model", expected, repr(model))


def model_file(function: str, model: str, file: str) -> Path:
    """Returns a file of a model.

    Args:
        function: the caller, for errors.
        model: a directory, or owner/name on the hub.
        file: its path in the model.

    Raises:
        ValueError: if there is no such file, saying whether the hub could be asked.
    """
    if Path(model).is_dir():
        return Path(model) / file
    from huggingface_hub import hf_hub_download

    with without_retries(model) as reason:
        try:
            return Path(hf_hub_download(model, file))
        except Exception as error:  # of the hub's client, of any version
            if reason is not None:
                expected = f"a directory, or on the Hugging Face hub, which cannot be reached ({reason})"
                fail(function, "model", expected, f"{model!r}, no directory here and not in the hub's cache")
            got = shortened(" ".join(str(error).split()) or type(error).__name__, 300)
            fail(function, "model", f"a model on the Hugging Face hub with a file {file}", f"{model!r}: {got}")
