"""One run, as `tempflow-fast train` makes it: `python -m bench.experiment.one PLAN DIRECTORY`; the plan is JSON."""

from __future__ import annotations

import json
import sys

from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.prepare import prepare_policy
from tempflow_fast.run.signals import StopRequest
from tempflow_fast.run.train import train

from .plans import Plan

if __name__ == "__main__":
    plan = Plan(**json.loads(sys.argv[1]))
    config = plan.config()
    with StopRequest() as stop:
        train(config, prepare_policy(config.policy), RunDirectory(sys.argv[2]), stop)
    sys.exit(stop.status)
