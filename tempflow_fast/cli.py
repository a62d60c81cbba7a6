"""The command line, `tempflow-fast COMMAND`: tyro reads it from the dataclasses in `commands`."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Annotated, Any, Union

import tyro

from .commands import COMMANDS, Train
from .commands.repeated import check_repeated
from .commands.status import BAD_ARGUMENT, INTERRUPTED
from .errors import NotFiniteError
from .text import printable
from .version import __version__

LESS_MEMORY = "reduce --max-batch or --micro-batch, or name a limit with --memory-limit; --dry-run shows what is needed"
DESCRIPTION = "TempFlow-GRPO: reinforcement learning for text-to-image flow models. --version prints the version."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: the command and its options; None: those of this process.

    Returns:
        The exit status: 0; 2 for a bad argument or file, with one line on stderr; 130 after Ctrl-C.

    Raises:
        SystemExit: for help (0), and for options that do not exist or cannot be parsed (2).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a prompt that the terminal cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    if arguments[:1] == ["--version"]:
        print(f"tempflow-fast {__version__}")
        return 0
    try:
        _check_place()
        return _parse(arguments)()
    except BrokenPipeError:  # as in `tempflow-fast recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return _fail(arguments, error)
    except RuntimeError as error:
        from .processes import ProcessLostError  # imported only here, because they import torch
        from .rewards import RewardError

        if isinstance(error, (RewardError, ProcessLostError, NotFiniteError)):
            return _fail(arguments, error)
        if _is_out_of_memory(error):
            return _fail(arguments, ValueError(f"{str(error).splitlines()[0]}: {LESS_MEMORY}"))
        raise
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # one of the processes of a launch speaks
            print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _check_place() -> None:
    """Refuses a working directory that has been removed, in which libraries abort the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the working directory does not exist any more: change to another one") from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate; on the CPU it raises a plain RuntimeError."""
    from torch import OutOfMemoryError

    return isinstance(error, OutOfMemoryError) or "can't allocate memory" in str(error)


def _fail(arguments: Sequence[str], error: Exception) -> int:
    """Prints one line about the error and returns the exit status."""
    print(f"tempflow-fast {arguments[0]}: {printable(error)}", file=sys.stderr)
    return BAD_ARGUMENT


def _parse(arguments: Sequence[str]) -> Any:
    """The command with its options; the defaults of `train` are those of the recipe."""
    check_repeated(arguments)
    options: dict[str, Any] = {"train": {"default": Train.defaults(arguments)}} if "train" in arguments[:1] else {}
    commands = [Annotated[kind, tyro.conf.subcommand(name, **options.get(name, {}))] for name, kind in COMMANDS.items()]
    any_command: Any = Union[tuple(commands)]  # noqa: UP007  the tuple is made at run time
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                any_command,
                prog="tempflow-fast",
                description=DESCRIPTION,
                args=arguments or ["--help"],
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if (refusal := _refusal(stop)) is not None:
            raise refusal from None
        sys.stderr.write(said.getvalue())
        raise


def _refusal(stop: SystemExit) -> ValueError | None:
    """The error of our settings behind an exit of tyro, which reports it under a name of its own; or None."""
    error: BaseException | None = stop
    while error is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if isinstance(error, ValueError) and frame.f_globals["__name__"].startswith(f"{__package__}."):
            return error
        error = error.__context__
    return None
