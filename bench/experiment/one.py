"""One run, as `tempflow-fast train` makes it: `python -m bench.experiment.one PLAN DIRECTORY`; the plan is JSON."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tempflow_fast.errors import NotFiniteError
from tempflow_fast.run import train as loop
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.prepare import prepare_policy
from tempflow_fast.run.signals import StopRequest

from ..time_to_reward.paper_step import paper_step
from .awm import awm_step
from .methods import METHODS
from .plans import DIVERGED, Plan

STEPS = {"package": loop.grpo_step, "awm": awm_step, "paper": paper_step}


def timed(step: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The iteration with its processor time among its metrics: other jobs of a shared machine lengthen that less."""

    @functools.wraps(step)
    def run(*arguments: Any, **named: Any) -> dict[str, Any]:
        began = time.process_time()
        metrics = step(*arguments, **named)
        return {**metrics, "processor_seconds": time.process_time() - began}

    return run


def end_without(parent: int) -> None:
    """Ends this process with a checkpoint when its parent is gone, however that ended: nobody would wait for it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_without, args=(os.getppid(),), daemon=True).start()
    plan = Plan(**json.loads(sys.argv[1]))
    config = plan.config()
    loop.grpo_step = timed(STEPS[METHODS[plan.method].step])  # the loop, its checkpoints and evaluations are the same
    with StopRequest() as stop:
        try:
            loop.train(config, prepare_policy(config.policy), RunDirectory(sys.argv[2]), stop)
        except NotFiniteError as error:
            print(error, file=sys.stderr)
            sys.exit(DIVERGED)
    sys.exit(stop.status)
