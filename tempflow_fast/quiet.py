"""Keeps other libraries quiet while this package loads, adapts and saves models with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType

TORCHAO = ("torchao", "torch.utils._pytree")
"""Loggers that report on the import of torchao: every kernel built for another machine, and its enumerations. diffusers
imports torchao wherever it is installed, whether or not anything is quantized."""


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Inside this context, and in functions that it decorates, these libraries show no progress bars and no warnings.

    The user's own settings win. A logger whose level is not WARNING, the libraries' default, keeps its level, and bars
    stay on where the environment has HF_HUB_DISABLE_PROGRESS_BARS=0. Everything is as before after the context.

    Args:
        libraries: "diffusers", "transformers" or both; they are imported.
    """
    with ExitStack() as stack:
        for name in TORCHAO:
            stack.enter_context(_errors_only(name))
        for library in libraries:
            tools = import_module(f"{library}.utils.logging")
            stack.enter_context(_errors_only(library))
            stack.enter_context(_without_bars(tools))
        yield


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Raises the level of a logger to ERROR, unless somebody has chosen another level than the default."""
    logger = logging.getLogger(name)
    level, is_default = logger.level, logger.getEffectiveLevel() == logging.WARNING
    if is_default:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if is_default:
            logger.setLevel(level)


@contextmanager
def _without_bars(tools: ModuleType) -> Iterator[None]:
    """Turns the bars of a library off by its own `utils.logging`; transformers turns off those of the hub as well."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

    had_bars = tools.is_progress_bar_enabled() and constants.HF_HUB_DISABLE_PROGRESS_BARS is not False
    hub_had_bars = not are_progress_bars_disabled()
    if had_bars:
        tools.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            tools.enable_progress_bar()
            if not hub_had_bars:
                disable_progress_bars()
