"""What other libraries print while a command runs."""

from __future__ import annotations

import logging


def quieten_libraries() -> None:
    """Turns off the bars and notes of diffusers and transformers about the parts of a model: they bury the run's."""
    # Where torchao is installed, diffusers imports it; it names every kernel that is for another machine, and has torch
    # speak of its own enumerations.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
