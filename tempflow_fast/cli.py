"""The command line: `tempflow-fast COMMAND`, read by tyro from the dataclasses in `commands`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from .commands import COMMANDS, Train
from .commands.status import BAD_ARGUMENT, INTERRUPTED
from .version import __version__

DESCRIPTION = "TempFlow-GRPO: reinforcement learning for text-to-image flow models. --version prints the version."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its status: 0, 2 for a bad argument or file (one line on stderr), 130 after Ctrl-C.

    Raises:
        SystemExit: for help (0), and for options that do not exist or cannot be read (2).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--version"]:
        print(f"tempflow-fast {__version__}")
        return 0
    try:
        return _parse(arguments)()
    except BrokenPipeError:  # `tempflow-fast recipes | head`: the reader is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return _fail(arguments, error)
    except RuntimeError as error:
        from .processes import ProcessLostError  # only now: they import torch
        from .rewards import RewardError

        if isinstance(error, (RewardError, ProcessLostError)):
            return _fail(arguments, error)
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _fail(arguments: Sequence[str], error: Exception) -> int:
    """Says in one line what went wrong."""
    print(f"tempflow-fast {arguments[0]}: {error}", file=sys.stderr)
    return BAD_ARGUMENT


def _parse(arguments: Sequence[str]) -> Any:
    """The command with its options; those of `train` have the defaults of its recipe."""
    defaults = {"train": Train.defaults(arguments)} if "train" in arguments[:1] else {}
    commands = [
        Annotated[kind, tyro.conf.subcommand(name, **({"default": defaults[name]} if name in defaults else {}))]
        for name, kind in COMMANDS.items()
    ]
    return tyro.cli(
        Union[tuple(commands)],  # noqa: UP007  a tuple made at run time
        prog="tempflow-fast",
        description=DESCRIPTION,
        args=arguments or ["--help"],
        config=(tyro.conf.OmitArgPrefixes,),
    )
