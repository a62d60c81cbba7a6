"""What other libraries print while a command runs."""

from __future__ import annotations


def quieten_libraries() -> None:
    """Turns off the bars and notes of diffusers and transformers about the parts of a model: they bury the run's."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
