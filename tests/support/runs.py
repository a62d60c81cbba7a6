"""Short runs of the embedded model, and helpers that inspect them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.prepare import prepare_policy
from tempflow_fast.run.train import train
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.settings.run import TrainConfig

LITTLE = {"prompts_per_iteration": 6, "eval_images": 12, "branch_steps": (0, 1), "num_branches": 4, "trackers": ()}
"""A run of seconds, not minutes."""
OPTIONS = ["--prompts-per-iteration", "6", "--eval-images", "12", "--num-branches", "4"]
OPTIONS += ["--branch-steps", "0", "1", "--trackers"]
"""The same on the command line."""
PATIENCE = 300
"""Seconds for a step of another process on a busy machine."""
TINY = {
    **{"prompts_per_iteration": 3, "num_branches": 2, "branch_steps": (0, 1), "num_seeds": 1, "trackers": ()},
    **{"eval_images": 3, "checkpoint_every": 5, "warmup_iterations": 8, "learning_rate_decay": 0.0},
    **{"ema_decay": 0.9, "ema_every": 3, "beta": 0.01},
}
"""A run whose iterations take a fraction of a second, with everything on that has a state."""


def little_run(directory: Path, **settings: Any) -> RunDirectory:
    config = get_recipe("shapes").with_settings(**{**LITTLE, "num_iterations": 2, **settings})
    run = RunDirectory(directory)
    train(config, prepare_policy(config.policy), run, report=lambda sentence: None)
    return run


def untimed(run: RunDirectory) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in run.read_metrics()]


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the run ended on its own"
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def tiny_config(**settings: Any) -> TrainConfig:
    return get_recipe("shapes").with_settings(**{**TINY, "num_iterations": 4, "num_checkpoints": 1, **settings})


def go(path: Path, config: TrainConfig) -> tuple[RunDirectory, list[str]]:
    """Trains in this process, from wherever the directory is; also what was reported."""
    run, said = RunDirectory(path), []
    train(config, prepare_policy(config.policy), run, report=said.append)
    return run, said
