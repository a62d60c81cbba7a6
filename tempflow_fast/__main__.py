"""`python -m tempflow_fast` is the command `tempflow-fast`, and like it imports nothing from the working directory."""

from __future__ import annotations

import os
import signal
import sys


def command() -> None:
    """Runs `cli.main` as this process and ends it, however early Ctrl-C comes and whatever threads still hang."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # during imports it ends the process without a traceback
    from .cli import main

    signal.signal(signal.SIGINT, usual)
    status = main()
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if status > signal.NSIG:  # ended by a signal: Python would wait for threads, such as those of a hanging reward
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    # Python puts the working directory first in the import path: a file torch.py there would run instead of torch.
    if not getattr(sys.flags, "safe_path", False):  # since Python 3.11, -P
        del sys.path[0]
    command()
