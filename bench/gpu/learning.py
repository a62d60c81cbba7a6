"""Whether the packaged pipeline learns on this device: a run of `tempflow-fast train`, whole."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from . import BUILT
from .children import ROOT, run
from .plan import Plan
from .results import Outcome, Session

WINDOW = 10
LEAST_RISE = 0.05
"""Of the mean reward between the first and the last iterations; on a CPU it is about 0.15."""


def shapes_learns(plan: Plan, session: Session) -> Outcome:
    """Trains the shapes on the device; the mean reward of the last iterations is above that of the first."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--recipe", "shapes", "--device", plan.device.type, "--output", folder, "--eval-images", "12"]
        options += ["--cuda-graphs"] if plan.device.type == "cuda" else []
        count = ["--iterations", str(plan.learning_iterations)]
        command = [sys.executable, "-m", "tempflow_fast", "train", *options, *count]
        ran = run(command, session.seconds_left, folder=Path(os.environ.get(BUILT, ROOT)))  # not the checkout
        path = Path(folder) / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
    if not ran.in_time:
        raise TimeoutError(f"not done in time: {len(lines)} of {plan.learning_iterations} iterations")
    if ran.status:
        raise RuntimeError(ran.last_line)
    metrics = [json.loads(line) for line in lines]
    rewards = [line["reward_mean"] for line in metrics]
    first, last = statistics.mean(rewards[:WINDOW]), statistics.mean(rewards[-WINDOW:])
    seconds = statistics.median(line["seconds_rollout"] + line["seconds_train"] for line in metrics)
    figures = {"run": "shapes", "first ten": first, "last ten": last, "s per iteration": seconds}
    if len(rewards) >= 2 * WINDOW:
        assert last - first > LEAST_RISE, f"the mean reward goes from {first:.3f} to {last:.3f}"
    return Outcome(f"{len(rewards)} iterations: mean reward {first:.3f} to {last:.3f}", [figures])
