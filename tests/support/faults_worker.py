"""A process that forks runs of the command, each with a fault at one of its file events: see `support.faults`.

It runs under the preloaded library. Every line of its input is a request, every line of its output the answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time
from typing import Any

import support.preloaded  # noqa: F401


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Forks a run, waits for it, and kills it after `seconds`, if that is not None."""
    reading, writing = os.pipe()
    output = os.open(request["output"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        os.dup2(output, 1)
        os.dup2(output, 2)
        child(request, writing)
    os.close(writing)
    os.close(output)
    if request["seconds"] is not None:
        time.sleep(request["seconds"])
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        events, *modules = pipe.read().split() or ["0"]
    _, status = os.waitpid(pid, 0)
    for module in modules:  # the next runs start faster
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    return {"status": os.waitstatus_to_exitcode(status), "events": int(events)}


def child(request: dict[str, Any], writing: int) -> None:
    from tempflow_fast.cli import main

    library = ctypes.CDLL(None)
    if request["file_size"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
    library.fault_at(request["directory"].encode(), ctypes.c_long(request["event"]), request["kind"])
    status = 1
    try:
        status = main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with os.fdopen(writing, "w") as pipe:
            print(library.fault_count(), *(sys.modules if status == 0 else ()), file=pipe)
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
